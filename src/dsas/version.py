"""The version of dsas, as installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("dsas")
except PackageNotFoundError:
    VERSION = "0.0.0+source"
