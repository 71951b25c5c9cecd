"""HOW: one transform per file. `TRANSFORMS` is the registry that fit, storage, the CLI and the laws read."""

from typing import TYPE_CHECKING

from dsas.methods.registry import Registry

if TYPE_CHECKING:
    from dsas.transforms.base import Transform

TRANSFORMS: "Registry[Transform]" = Registry(
    "dsas.transforms",
    "dsas.transforms.base:Transform",
    {
        "caa": "dsas.transforms.addition:Addition",
        "caa-pca": "dsas.transforms.principal:PrincipalAddition",
        "iti": "dsas.transforms.classifier:ClassifierAddition",
        "mean-act": "dsas.transforms.mean:MeanTransport",
        "gaussian-act": "dsas.transforms.gaussian:GaussianTransport",
        "linear-act": "dsas.transforms.linear:LinearTransport",
        "lineas": "dsas.transforms.lineas:Lineas",
        "ablation": "dsas.transforms.ablation:Ablation",
        "paired": "dsas.transforms.paired:PairedMap",
        "rotation": "dsas.transforms.rotation:Rotation",
    },
)
