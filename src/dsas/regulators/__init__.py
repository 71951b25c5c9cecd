"""WHEN: one regulator per file. `REGULATORS` is the registry that fit, storage, the CLI and the laws read."""

from typing import TYPE_CHECKING

from dsas.errors import OptionError
from dsas.methods.registry import Registry

if TYPE_CHECKING:
    from dsas.regulators.base import Regulator

REGULATORS: "Registry[Regulator]" = Registry(
    "dsas.regulators",
    "dsas.regulators.base:Regulator",
    {
        "constant": "dsas.regulators.constant:Constant",
        "evidence": "dsas.regulators.evidence:Evidence",
        "probe": "dsas.regulators.probe:Probe",
        "logistic": "dsas.regulators.logistic:Logistic",
        "located": "dsas.regulators.located:Located",
        "rectified": "dsas.regulators.rectified:Rectified",
        "cast": "dsas.regulators.cast:Cast",
        "mera": "dsas.regulators.mera:Mera",
        "halfspace": "dsas.regulators.halfspace:HalfSpace",
        "posterior": "dsas.regulators.posterior:Posterior",
        "schedule": "dsas.regulators.schedule:Schedule",
        "turns": "dsas.regulators.turns:Turns",
        "product": "dsas.regulators.product:Product",
        "per-step": "dsas.regulators.perstep:PerStep",
        "clean": "dsas.regulators.clean:Clean",
        "held": "dsas.regulators.held:Held",
    },
)


def factors_of(regulator: str) -> list[str]:
    """Return the factors of a regulator that is written as a name or a product of names, "a*b".

    Imports no regulator. Raises OptionError for an unknown name, and for regulators that have no form by name.
    """
    names = [name.strip() for name in regulator.split("*")]
    for name in names:
        REGULATORS.check(name)
    if "product" in names:
        raise OptionError("write a product as the names of its factors, such as 'logistic*posterior'")
    if "per-step" in names:
        raise OptionError("for one regulator per denoising step, of any name, use dsas.Drawing(per_step=True)")
    if "clean" in names:
        raise OptionError("for a regulator that reads clean, use functools.partial(dsas.Clean.fit, of=...)")
    return names
