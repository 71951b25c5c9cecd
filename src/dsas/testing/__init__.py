"""Testing: the laws, and tiny models to check them on, for the methods of dsas and for those of other authors.

    check_transform(MyTransform)
    check_regulator(MyRegulator)
    check_steering(steering, tiny_model("llama"), tiny_tokenizer())        # a composition, too; way="fuse", "install"
    check_pipeline(steering, tiny_pipeline("sd"), draw)                    # draw(pipeline, prompts, seeds) -> pictures

Each raises LawBroken, an AssertionError whose message names the law. It is not imported by `import dsas`.
"""

from dsas.testing.drawings import check_pipeline
from dsas.testing.laws import LAWS, LawBroken
from dsas.testing.methods import check_regulator, check_transform
from dsas.testing.models import FAMILIES, tiny_model, tiny_tokenizer
from dsas.testing.pipelines import PIPELINES, tiny_pipeline
from dsas.testing.steerings import check_compiled, check_steering
from dsas.testing.ways import WAYS

__all__ = [
    "FAMILIES",
    "LAWS",
    "PIPELINES",
    "WAYS",
    "LawBroken",
    "check_compiled",
    "check_pipeline",
    "check_regulator",
    "check_steering",
    "check_transform",
    "tiny_model",
    "tiny_pipeline",
    "tiny_tokenizer",
]
