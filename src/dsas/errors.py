"""Every error dsas raises on purpose, drawn as a tree.

    DsasError
    |-- TextsError         (ValueError)    a set of texts cannot be used: too few, empty, identical
    |-- SiteError          (ValueError)    a site pattern matches nothing, or a site is not there
    |-- StrengthError      (ValueError)    strength not finite, of the wrong length, or negative
    |-- OptionError        (ValueError)    an argument is outside the values it can take
    |-- ActivationError    (ValueError)    an activation is not finite or has an unexpected shape
    |-- ModelMismatchError (ValueError)    a Steering does not fit the model it is applied to
    |-- ArtifactError      (ValueError)    a stored Steering is missing, truncated, tampered or too new
    |-- StateError         (RuntimeError)  not valid in the current state (nothing recorded yet, already removed)
    |-- WorkerError        (RuntimeError)  a process that did part of the work died, again and again
    `-- MissingExtraError  (ImportError)   an optional dependency is not installed

Each leaf is also the built-in error that fits, so `except ValueError` keeps working. A message says what was
expected, what came, and the nearest valid choice.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DsasError(Exception):
    """Root of every error dsas raises on purpose."""


class TextsError(DsasError, ValueError):
    """A set of texts cannot be used."""


class SiteError(DsasError, ValueError):
    """A site pattern matches nothing, or a named site does not exist."""


class StrengthError(DsasError, ValueError):
    """A strength is not finite, of the wrong length, or negative where a transform has no opposite."""


class OptionError(DsasError, ValueError):
    """An argument is outside the values it can take."""


class ActivationError(DsasError, ValueError):
    """An activation is not finite, or has a shape that no layout describes."""


class ModelMismatchError(DsasError, ValueError):
    """A Steering does not fit the model it is applied to."""


class ArtifactError(DsasError, ValueError):
    """A stored Steering is missing, truncated, tampered with, or from a newer schema."""


class StateError(DsasError, RuntimeError):
    """The method is not valid in the current state."""


class WorkerError(DsasError, RuntimeError):
    """A process that did part of the work died, again and again."""


class MissingExtraError(DsasError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is not installed; it comes with the extra: pip install 'dsas[{extra}]'")


class DsasWarning(UserWarning):
    """dsas did something different from what was requested, and the message says what."""


def shown(value: object, most: int = 80) -> str:
    """Return a value as one short line for an error message, escaped and cut, whatever was sent."""
    try:
        said = repr(value)
    except (ValueError, RecursionError):  # such as an int of more digits than Python writes, or deeply nested lists
        return f"a value of type {type(value).__name__} that is too long to be shown"
    return said if len(said) <= most else f"{said[:most]}..."


def closest(name: object, choices: Iterable[str], n: int = 3) -> str:
    """Return the `n` choices nearest to `name` as one readable string, for the end of an error message."""
    options = list(choices)
    near = (
        get_close_matches(name[:200] if isinstance(name, str) else shown(name, 200), options, n=n, cutoff=0.3)
        or options[:n]
    )
    return ", ".join(repr(o) for o in near) if near else "(none)"
