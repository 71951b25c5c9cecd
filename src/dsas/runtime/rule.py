"""Rule: what happens at one site."""

from typing import NamedTuple

from dsas.model.sites import Site
from dsas.regulators.base import Regulator
from dsas.transforms.base import Transform


class Rule(NamedTuple):
    """What happens at one site.

    weight: factor in [0, 1] on the strength; 0 means the site was not selected and is left alone.
    accuracy: held-out balanced accuracy in [0, 1] of telling source from control here; None when not measured.
    """

    site: Site
    transform: Transform
    regulator: Regulator
    weight: float = 1.0
    accuracy: float | None = None
