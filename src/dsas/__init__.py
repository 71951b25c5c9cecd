"""dsas: steer a generative model only when and where it is needed (arXiv 2512.03661).

steering = dsas.fit(model, tokenizer, source=unwanted, control=neutral, target=wanted)
with steering.apply(model, strength=1.0):
    model.generate(...)
"""

from dsas.calibration import Budget, calibrate
from dsas.errors import DsasError, DsasWarning
from dsas.explaining.explanation import explain
from dsas.fitting.closed_form import fit
from dsas.fitting.selection import All, Selection, Smooth, Threshold, Top
from dsas.model.drawing import Drawing
from dsas.model.examples import Example
from dsas.model.image_trace import Maps
from dsas.model.reading import Reading
from dsas.model.sites import Site, find_sites
from dsas.model.token_trace import Trace
from dsas.parallel.workers import Spread
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
from dsas.runtime.applied import Applied
from dsas.runtime.rule import Rule
from dsas.steering.calibration_record import Calibration
from dsas.steering.composition import Composition
from dsas.steering.steering import Steering
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

__all__ = [
    "REGULATORS",
    "TRANSFORMS",
    "Ablation",
    "Addition",
    "All",
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
    "Example",
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
    "Selection",
    "Site",
    "Smooth",
    "Spread",
    "Steering",
    "Threshold",
    "Top",
    "Trace",
    "Transform",
    "__version__",
    "calibrate",
    "explain",
    "find_sites",
    "fit",
    "train",
]
