"""WHEN: one regulator a file. `REGULATORS` is the registry that fit, storage, the CLI and the laws read."""

from dsas.regulators.base import FittedRegulator, Regulator
from dsas.regulators.constant import Constant
from dsas.regulators.logistic import Logistic

REGULATORS: dict[str, type[Regulator]] = {method.name: method for method in (Constant, Logistic)}

__all__ = ["REGULATORS", "Constant", "FittedRegulator", "Logistic", "Regulator"]
