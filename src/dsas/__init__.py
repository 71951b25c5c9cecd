"""dsas: steer a generative model only when and where it is needed (arXiv 2512.03661).

steering = dsas.fit(model, tokenizer, source=unwanted, control=neutral, target=wanted)
with steering.apply(model, strength=1.0):
    model.generate(...)
"""

from dsas.applied import Applied, Rule
from dsas.calibration import Budget, calibrate
from dsas.collection import Reading
from dsas.composition import Composition
from dsas.diffusion import Drawing
from dsas.errors import DsasError, DsasWarning
from dsas.evidence import Calibration
from dsas.explain import explain
from dsas.fit import fit
from dsas.maps import Maps
from dsas.regulators import (
    REGULATORS,
    Cast,
    Constant,
    HalfSpace,
    Logistic,
    Mera,
    PerStep,
    Posterior,
    Product,
    Rectified,
    Regulator,
    Schedule,
)
from dsas.sites import Site, find_sites
from dsas.steering import Steering
from dsas.trace import Trace
from dsas.training import HeldOut, Optimiser, train
from dsas.transforms import (
    TRANSFORMS,
    Ablation,
    Addition,
    ClassifierAddition,
    Custom,
    GaussianTransport,
    LinearTransport,
    Lineas,
    MeanTransport,
    PrincipalAddition,
    Rotation,
    Transform,
)
from dsas.version import VERSION as __version__
from dsas.workers import Spread

__all__ = [
    "REGULATORS",
    "TRANSFORMS",
    "Ablation",
    "Addition",
    "Applied",
    "Budget",
    "Calibration",
    "Cast",
    "ClassifierAddition",
    "Composition",
    "Constant",
    "Custom",
    "Drawing",
    "DsasError",
    "DsasWarning",
    "GaussianTransport",
    "HalfSpace",
    "HeldOut",
    "LinearTransport",
    "Lineas",
    "Logistic",
    "Maps",
    "MeanTransport",
    "Mera",
    "Optimiser",
    "PerStep",
    "Posterior",
    "PrincipalAddition",
    "Product",
    "Reading",
    "Rectified",
    "Regulator",
    "Rotation",
    "Rule",
    "Schedule",
    "Site",
    "Spread",
    "Steering",
    "Trace",
    "Transform",
    "__version__",
    "calibrate",
    "explain",
    "find_sites",
    "fit",
    "train",
]
