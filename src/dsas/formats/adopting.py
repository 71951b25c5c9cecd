"""Adopting: a published vector becomes the transform of a Steering, and a regulator is fitted around it.

Strength 1 is what was published. With a constant regulator it stays unconditional; with another one, the same vector is
added only where the regulator fires.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from dsas.errors import ArtifactError, DsasWarning, OptionError, SiteError, closest
from dsas.evaluation.intervals import Interval, bootstrap_ratio
from dsas.evaluation.perplexity import perplexity
from dsas.files.json_values import JsonObject
from dsas.fitting.closed_form import fit
from dsas.fitting.selection import Selection
from dsas.formats.gguf_vectors import read_gguf
from dsas.formats.lm_eval_csv import read_lm_eval_csv
from dsas.formats.ml_act import ENDING, read_ml_act
from dsas.formats.published import Published
from dsas.formats.torch_vectors import read_object, read_safetensors, read_torch
from dsas.model.examples import Given
from dsas.model.foreign import Model, Tokenizer
from dsas.model.identity import ModelIdentity
from dsas.model.reading import Reading
from dsas.model.sites import Site, SitePatterns, find_sites
from dsas.model.subject import subject_of
from dsas.regulators.constant import Constant
from dsas.runtime.rule import Rule
from dsas.steering.folder import CONFIG, TENSORS
from dsas.steering.steering import Steering
from dsas.transforms.base import Transform

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
    if (file / CONFIG).is_file() and (file / TENSORS).is_file():
        raise ArtifactError(f"{file} is a stored Steering, or a model: dsas.Steering.from_pretrained reads the former")
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
    sites: SitePatterns | None = None,
    regulator: str = "auto",
    selection: Selection | str = "threshold",
    reading: Reading | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Steering:
    """Return a Steering that applies published vectors only where a regulator fires.

    vectors: as `read_vectors` takes them. source, control: as in `dsas.fit`: examples of the behaviour, and examples
    that must stay as they are. sites: those of the vectors that are adopted, as `dsas.fit` names sites; all unless
    given. Some formats hold a vector for every layer, of which their users apply one. regulator: as in `dsas.fit`;
    "constant" keeps the vectors as they were, and needs no examples.
    selection, reading, checkpoint, progress: as in `dsas.fit`.
    Raises ArtifactError for vectors that cannot be read, OptionError for those of another width or number of layers,
    SiteError for layers that the model does not have and sites that have no vector, TextsError.
    """
    published, subject = read_vectors(vectors), subject_of(model, tokenizer)
    depth = subject.identity.depth
    if published.layers and depth and published.layers != depth:
        raise OptionError(f"these vectors are for a model of {published.layers} layers, and this one has {depth}")
    _warn_of_another_kind(published.of, subject.identity)
    edits = published.at_sites(subject.module)
    if sites is not None:
        edits = _among(edits, subject.module, sites)
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
        raise OptionError("adopted vectors are not fitted incrementally: remove Reading(incremental=True)")
    fitted = fit(
        model,
        tokenizer,
        source=source,
        control=control,
        target=control,  # unused: no transform is fitted
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


def adopted_rows(steering: Steering) -> list[JsonObject]:
    """Return a row per site, with the accuracy of its regulator; None where nothing was fitted."""
    unknown = {"low": None, "high": None, "n": None}
    return [
        {
            "site": line.site,
            "strength": steering.default_strength * line.weight,
            "measure": "accuracy",
            "mean": line.accuracy,
            **unknown,
        }
        for line in steering.report()
    ]


class Damage(NamedTuple):
    """Perplexity over that of the unsteered model (1: no damage), with the regulators and without any."""

    strength: float
    gated: Interval
    everywhere: Interval

    def rows(self) -> list[JsonObject]:
        """Return a row for each of the two ratios."""
        named = {"perplexity with regulators": self.gated, "perplexity without": self.everywhere}
        return [
            {"site": None, "strength": self.strength, "measure": name, **found._asdict()}
            for name, found in named.items()
        ]

    def line(self) -> str:
        """Return the damage in words."""
        gated, everywhere = ("{:.4g} [{:.4g}, {:.4g}]".format(*one[:3]) for one in (self.gated, self.everywhere))
        told = f"at strength {self.strength:.4g} their perplexity is {gated} times that of the unsteered model"
        return f"{told}; {everywhere} times as it was published, without a regulator"


def damage_to(model: Model, tokenizer: Tokenizer, steering: Steering, texts: Sequence[Given]) -> Damage:
    """Return what an adopted Steering does to texts at its own strength, and what its vectors do to every token.

    It is computed over all tokens of the texts together, each cut as in `perplexity`, with 95 % intervals over texts.
    """
    published = Steering([Rule(rule.site, rule.transform, Constant()) for rule in steering.rules], steering.model)
    strength, before = steering.default_strength, perplexity(model, tokenizer, texts)
    found = []
    for one in (steering, published):
        with one.apply(model, strength, record=False):
            after = perplexity(model, tokenizer, texts)
        lost = ((after.losses - before.losses) * before.tokens)[:, None]
        ratio = bootstrap_ratio(lost, before.tokens.astype(float)[:, None])
        mean, low, high = np.exp(ratio[:3]).tolist()
        found.append(Interval(mean, low, high, ratio.n))
    return Damage(strength, *found)


def _warn_of_another_kind(of: str, identity: ModelIdentity) -> None:
    """Warn of vectors that say that they are for another kind of model. llama.cpp calls Mistral "llama", too."""
    ours = {identity.family, re.sub("(ForCausalLM|LMHeadModel)$", "", identity.model_class)} - {""}
    asked, *names = (re.sub("[^a-z0-9]|text$", "", name.lower()) for name in (of, *ours))
    names += ["llama"] if any(name.startswith(("mistral", "mixtral")) for name in names) else []
    if asked and names and not any(asked.startswith(name) or name.startswith(asked) for name in names):
        warnings.warn(
            f"these vectors say that they are for {of!r:.40}, and this model is a {identity.model_class}: on a model "
            "that it was not made on, a vector does nothing meaningful",
            DsasWarning,
            stacklevel=3,
        )


def _among(edits: Mapping[Site, Transform], model: nn.Module, sites: SitePatterns) -> dict[Site, Transform]:
    """Return the edits at sites that are asked for. Raises SiteError for a pattern that finds none of them."""
    kept = set[Site]()
    for pattern in [sites] if isinstance(sites, str | int | Site) else sites:
        found = [site for site in find_sites(model, pattern) if site in edits]
        if not found:
            those = [str(site) for site in edits]
            shown = ", ".join([*those[:2], "...", those[-1]] if len(those) > 3 else those)
            raise SiteError(f"there is no vector for {pattern!s:.60}: they are for {shown}")
        kept.update(found)
    return {site: edit for site, edit in edits.items() if site in kept}
