"""Adopting: a published vector becomes the transform of a Steering, and a regulator is fitted around it.

Strength 1 is what was published. With a constant regulator it stays as it was; with another one, the same vector is
added only where the regulator fires.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsas.errors import ArtifactError, OptionError, closest
from dsas.fitting.closed_form import fit
from dsas.fitting.selection import Selection
from dsas.formats.gguf_vectors import read_gguf
from dsas.formats.lm_eval_csv import read_lm_eval_csv
from dsas.formats.ml_act import ENDING, read_ml_act
from dsas.formats.published import Published
from dsas.formats.torch_vectors import read_object, read_safetensors, read_torch
from dsas.model.examples import Given
from dsas.model.foreign import Model, Tokenizer
from dsas.model.reading import Reading
from dsas.model.subject import subject_of
from dsas.regulators.constant import Constant
from dsas.runtime.rule import Rule
from dsas.steering.steering import Steering

READERS = {
    ".gguf": read_gguf,
    ".pt": read_torch,
    ".pth": read_torch,
    ".bin": read_torch,
    ".safetensors": read_safetensors,
    ".csv": read_lm_eval_csv,
    ENDING: read_ml_act,
}


def read_vectors(vectors: Any) -> Published:
    """Return published vectors from a file, an object of repeng or steering-vectors, or a dictionary by layer.

    vectors: a path ending in .gguf, .pt, .pth, .bin, .safetensors, .csv (lm-eval) or .statedict (ml-act), or a folder
    of the last; a ControlVector or SteeringVector; or {layer: vector}. Which layer a number means in each format is
    documented in the module that reads it, in `dsas.formats`.
    Raises ArtifactError for anything else.
    """
    if not isinstance(vectors, str | Path):
        return read_object(vectors, f"a {type(vectors).__name__}")
    file = Path(vectors)
    if file.is_dir():
        return read_ml_act(file)
    if file.suffix.lower() not in READERS:
        raise ArtifactError(
            f"{file}: expected a file ending in {', '.join(READERS)}, got {file.suffix or 'no ending'!r}"
        )
    if not file.is_file():
        there = [one.name for one in file.parent.glob("*") if one.suffix.lower() in READERS]
        raise ArtifactError(f"{file}: no such file; closest in its folder: {closest(file.name, there)}")
    return READERS[file.suffix.lower()](file)


def adopt(
    vectors: Any,
    model: Model,
    tokenizer: Tokenizer = None,
    *,
    source: Sequence[Given] = (),
    control: Sequence[Given] = (),
    regulator: str = "auto",
    selection: Selection | str = "threshold",
    reading: Reading | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Steering:
    """Return a Steering that applies published vectors only where a regulator asks for them.

    vectors: as `read_vectors` takes them. source, control: as in `dsas.fit`: examples of the behaviour, and examples
    that must stay as they are. regulator: as in `dsas.fit`; "constant" keeps the vectors as they were, and needs no
    examples.
    selection, reading, checkpoint, progress: as in `dsas.fit`.
    Raises ArtifactError for vectors that cannot be read, OptionError for those of another width, SiteError for layers
    that the model does not have, TextsError.
    """
    published, subject = read_vectors(vectors), subject_of(model, tokenizer)
    edits = published.at_sites(subject.module)
    told = {"format": published.format, "for": published.of, "sites": len(edits)}
    if isinstance(vectors, str | Path):
        told["file"] = Path(vectors).name
    width = {int(next(edit.buffers()).numel()) for edit in edits.values()}
    if subject.identity.width and width != {subject.identity.width}:
        raise OptionError(f"these vectors have {width.pop()} numbers each, the model's layers {subject.identity.width}")
    if regulator == "constant":
        rules = [Rule(site, edit, Constant()) for site, edit in edits.items()]
        return Steering(rules, subject.identity, {"adopted": told})
    if reading is not None and getattr(reading, "incremental", False):
        raise OptionError("adopted vectors are not read incrementally: leave Reading(incremental=True) out")
    fitted = fit(
        model,
        tokenizer,
        source=source,
        control=control,
        target=control,  # which no transform is fitted to
        transform=next(iter(edits.values())),
        sites=list(edits),
        regulator=regulator,
        selection=selection,
        reading=reading,
        checkpoint=checkpoint,
        progress=progress,
    )
    settings: Mapping[str, Any] = {**fitted.settings, "transform": "adopted", "adopted": told}
    rules = [rule._replace(transform=edits[rule.site]) for rule in fitted.rules]
    return Steering(rules, subject.identity, settings)
