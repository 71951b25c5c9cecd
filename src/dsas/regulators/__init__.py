"""WHEN: one regulator a file. `REGULATORS` is the registry that fit, storage, the CLI and the laws read."""

from dsas.methods.registry import Registry
from dsas.regulators.base import FittedRegulator, Regulator
from dsas.regulators.cast import Cast
from dsas.regulators.constant import Constant
from dsas.regulators.halfspace import HalfSpace
from dsas.regulators.logistic import Logistic
from dsas.regulators.mera import Mera
from dsas.regulators.perstep import PerStep
from dsas.regulators.posterior import Posterior
from dsas.regulators.product import Product
from dsas.regulators.rectified import Rectified
from dsas.regulators.schedule import Schedule

REGULATORS: Registry[Regulator] = Registry(
    "dsas.regulators",
    Regulator,
    (Constant, Logistic, Rectified, Cast, Mera, HalfSpace, Posterior, Schedule, Product, PerStep),
)

__all__ = [
    "REGULATORS",
    "Cast",
    "Constant",
    "FittedRegulator",
    "HalfSpace",
    "Logistic",
    "Mera",
    "PerStep",
    "Posterior",
    "Product",
    "Rectified",
    "Regulator",
    "Schedule",
]
