"""The public surface: what `import dsas` offers, taken from here when the first of it is asked for."""

from dsas.calibration.budget import Budget
from dsas.calibration.largest_strength import calibrate
from dsas.errors import (
    ActivationError,
    ArtifactError,
    DsasError,
    DsasWarning,
    MissingExtraError,
    ModelMismatchError,
    OptionError,
    SiteError,
    StateError,
    StrengthError,
    TextsError,
    WorkerError,
)
from dsas.explaining.explanation import explain
from dsas.fitting.closed_form import fit
from dsas.fitting.selection import All, Selection, Smooth, Threshold, Top
from dsas.methods.base import Facts
from dsas.model.drawing import Drawing
from dsas.model.examples import Example
from dsas.model.forward_pass import ForwardPass
from dsas.model.image_trace import Maps
from dsas.model.loading import load_model
from dsas.model.reading import Reading
from dsas.model.sites import Site, find_sites
from dsas.model.token_trace import Trace
from dsas.parallel.workers import Spread
from dsas.regulators import REGULATORS
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
from dsas.runtime.applied import Applied
from dsas.runtime.rule import Rule
from dsas.steering.calibration_record import Calibration
from dsas.steering.composition import Composition
from dsas.steering.steering import Steering
from dsas.training.gradients import train
from dsas.training.learner import Gradient, Learner
from dsas.training.learning import LearnedParts
from dsas.training.objectives import OBJECTIVES
from dsas.training.objectives.base import Objective, TrainingTask
from dsas.training.objectives.e2e import E2E
from dsas.training.objectives.lineas import LinEAS
from dsas.training.objectives.preference import Preference
from dsas.training.plan import HeldOut, Optimiser, Running
from dsas.transforms import TRANSFORMS
from dsas.transforms.ablation import Ablation
from dsas.transforms.addition import Addition
from dsas.transforms.affine import Translation
from dsas.transforms.base import Transform
from dsas.transforms.classifier import ClassifierAddition
from dsas.transforms.custom import Custom
from dsas.transforms.gaussian import GaussianTransport
from dsas.transforms.linear import LinearTransport
from dsas.transforms.lineas import Lineas
from dsas.transforms.mean import MeanTransport
from dsas.transforms.principal import PrincipalAddition
from dsas.transforms.rotation import Rotation

__all__ = [
    "E2E",
    "OBJECTIVES",
    "REGULATORS",
    "TRANSFORMS",
    "Ablation",
    "ActivationError",
    "Addition",
    "All",
    "Applied",
    "ArtifactError",
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
    "Facts",
    "FittedRegulator",
    "ForwardPass",
    "GaussianTransport",
    "Gradient",
    "HalfSpace",
    "HeldOut",
    "LearnedParts",
    "Learner",
    "LinEAS",
    "LinearTransport",
    "Lineas",
    "Logistic",
    "Maps",
    "MeanTransport",
    "Mera",
    "MissingExtraError",
    "ModelMismatchError",
    "Objective",
    "Optimiser",
    "OptionError",
    "PerStep",
    "Posterior",
    "Preference",
    "PrincipalAddition",
    "Product",
    "Reading",
    "Rectified",
    "Regulator",
    "Rotation",
    "Rule",
    "Running",
    "Schedule",
    "Selection",
    "Site",
    "SiteError",
    "Smooth",
    "Spread",
    "StateError",
    "Steering",
    "StrengthError",
    "TextsError",
    "Threshold",
    "Top",
    "Trace",
    "TrainingTask",
    "Transform",
    "Translation",
    "WorkerError",
    "calibrate",
    "explain",
    "find_sites",
    "fit",
    "load_model",
    "train",
]
