"""HOW: one transform a file. `TRANSFORMS` is the registry that fit, storage, the CLI and the laws read."""

from dsas.methods.registry import Registry
from dsas.transforms.ablation import Ablation
from dsas.transforms.addition import Addition
from dsas.transforms.affine import AffineTransform, Translation, Transport, steer
from dsas.transforms.base import Transform
from dsas.transforms.classifier import ClassifierAddition
from dsas.transforms.custom import Custom
from dsas.transforms.gaussian import GaussianTransport
from dsas.transforms.linear import LinearTransport
from dsas.transforms.lineas import Lineas
from dsas.transforms.mean import MeanTransport
from dsas.transforms.principal import PrincipalAddition
from dsas.transforms.rotation import Rotation

TRANSFORMS: Registry[Transform] = Registry(
    "dsas.transforms",
    Transform,
    (
        Addition,
        PrincipalAddition,
        ClassifierAddition,
        MeanTransport,
        GaussianTransport,
        LinearTransport,
        Lineas,
        Ablation,
        Rotation,
    ),
)

__all__ = [
    "TRANSFORMS",
    "Ablation",
    "Addition",
    "AffineTransform",
    "ClassifierAddition",
    "Custom",
    "GaussianTransport",
    "LinearTransport",
    "Lineas",
    "MeanTransport",
    "PrincipalAddition",
    "Rotation",
    "Transform",
    "Translation",
    "Transport",
    "steer",
]
