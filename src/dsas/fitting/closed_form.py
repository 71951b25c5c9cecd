"""Fit: source, control and target texts in, a Steering out, in closed form.

Source and target say HOW to steer, source and control WHEN. Every text runs through the model once; all sites are read
in the same pass, and of each text only one vector per site is kept. Source: DSAS (arXiv 2512.03661, sections 3, 4).

At once, every site is fitted on the unsteered model. Incrementally, each is fitted on source and control activations
that the earlier sites have steered already, and on unsteered target activations (AcT, arXiv 2410.23054, section 3.2);
every text still runs once, see `dsas.fitting.incremental`. Left out: several rounds.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.fitting.activations import pooler
from dsas.fitting.collect import LabelledTokens, collect, collect_drawn, collect_tokens, inputs_of, read_batches
from dsas.fitting.incremental import PausedPasses
from dsas.fitting.method_names import FitRegulator, FitTransform, regulator_fit, transform_fit
from dsas.fitting.site_rule import Choice, Recipe, Selection, SiteData, said
from dsas.model.drawing import Drawing, places_of
from dsas.model.examples import Spans, check_spans, check_texts
from dsas.model.identity import ModelIdentity
from dsas.model.image_pipeline import Parts, module_of
from dsas.model.reading import Reading
from dsas.model.sites import DEFAULT_SITES, Site, SitePatterns, find_sites
from dsas.parallel.progress import progress_bar
from dsas.parallel.workers import Spread
from dsas.regulators.base import Regulator
from dsas.runtime.rule import Rule
from dsas.steering.steering import Steering
from dsas.transforms.base import Transform

Sets = Mapping[str, list[str]]
SETS = ("source", "control", "target")


def fit(
    model: Any,
    tokenizer: Any = None,
    *,
    source: Sequence[str],
    control: Sequence[str],
    target: Sequence[str] | None = None,
    transform: str | Transform | FitTransform = "caa",
    regulator: str | Regulator | FitRegulator = "logistic",
    sites: SitePatterns = DEFAULT_SITES,
    selection: Selection = "threshold",
    threshold: float = 0.75,
    top: int = 48,
    spans: Sequence[Spans] | None = None,
    incremental: bool = False,
    reading: Reading | Drawing | None = None,
    checkpoint: str | Path | None = None,
    spread: Spread = Spread(),
    progress: bool = True,
) -> Steering:
    """Fit a Steering for `model` from three sets of texts, at least 4 in each; the model is not changed.

    model: a language model, which goes with its tokenizer; or a diffusers pipeline, and the texts are prompts.
    source: texts that show the undesired behaviour. control: neutral texts that must stay as they are; they must match
    the source in style and length, or the regulator learns the genre. target: the desired behaviour; the control set
    when not given, with a warning that says so.
    transform, regulator: a name from `dsas.TRANSFORMS`, `dsas.REGULATORS` (or a product of names, such as
    "logistic*posterior"); an object to use at every site, such as `dsas.Custom(function)`; or a function with the
    signature of their `fit`, such as `functools.partial(dsas.Logistic.fit, components=8)`.
    sites: shorthand, path, glob or "re:..." regular expression, one or several.
    selection: "threshold" steers sites whose held-out accuracy is at least `threshold` (0 to 1), "smooth" weights each
    site by max(0, 2 * accuracy - 1), "top" steers the `top` most accurate sites (measured if the regulator learns
    nothing), "all" steers everywhere; but for "top", sites without an accuracy are always steered.
    spans: for each source text, where (start, stop) in characters it shows the behaviour; the regulator then learns
    from single tokens, those in spans against all others, and must be one that can (`logistic`).
    incremental: fit each site with the earlier ones already steered, at strength 1.
    reading: how a text becomes a vector, a `Reading`, or of a pipeline a `Drawing`; the defaults of either when not
    given. checkpoint: folder that keeps what was collected, to resume from; of an
    incremental fit that is the target's part only. spread: run the model in several processes or over a Ray cluster, on
    shards of the texts; the Steering is the same.
    Raises TextsError, SiteError, OptionError, ActivationError.
    """
    choice = Choice(selection, threshold, top)
    choice.check()
    recipe = Recipe(transform_fit(transform), regulator_fit(regulator), choice)
    sets = _checked_sets(source, control, target)
    if spans is not None:
        check_spans(sets["source"], spans)
        if incremental:
            raise OptionError("spans and incremental cannot be combined: tokens are read from the unsteered model")
    module = module_of(model)
    reading = reading_of(module, tokenizer, reading)
    if isinstance(module, Parts) and (incremental or spans is not None):
        raise OptionError("incremental and spans are for language models; a pipeline is fitted at once")
    if spread != Spread() and (isinstance(module, Parts) or incremental or spans is not None):
        raise OptionError("a pipeline, and a fit with incremental or spans, runs in one process: leave spread out")
    found = find_sites(module, sites)
    run = _Run(module, tokenizer, found, reading, progress, spread)
    # Matrices this small gain nothing from BLAS threads, which then take the cores from torch's own while they wait.
    with threadpool_limits(1, user_api="blas"):
        if isinstance(reading, Drawing):
            rules = _drawn(run, reading, recipe, sets, checkpoint)
        elif incremental:
            rules = _incrementally(run, recipe, sets, checkpoint)
        else:
            rules = _at_once(run, recipe, sets, spans, checkpoint)
    rules = choice.of(sorted(rules, key=lambda rule: found.index(rule.site)))
    settings = {
        "transform": getattr(rules[0].transform, "name", type(rules[0].transform).__name__),
        "regulator": said(rules[0].regulator),
        "selection": choice.said(),
        "texts": {name: len(members) for name, members in sets.items()},
        "reading": reading.as_dict() if isinstance(reading, Drawing) else reading._asdict(),
        "fitted": "incrementally" if incremental else "at once",
        "labels": "texts" if spans is None else "tokens",
    }
    return Steering(rules, ModelIdentity.of(module), settings)


class _Run(NamedTuple):
    """What is read, and how."""

    model: nn.Module
    tokenizer: Any
    sites: list[Site]
    reading: Any
    progress: bool
    spread: Spread


def reading_of(model: nn.Module, tokenizer: Any, reading: Reading | Drawing | None) -> Reading | Drawing:
    """Return how to read a model. Raises OptionError when what was given does not go with it."""
    if isinstance(model, Parts):
        if tokenizer is not None or isinstance(reading, Reading):
            raise OptionError("a pipeline has its own tokenizers and is read by a dsas.Drawing: give neither another")
        return reading or Drawing()
    if tokenizer is None or isinstance(reading, Drawing):
        raise OptionError("a language model goes with its tokenizer, and is read by a dsas.Reading")
    return reading or Reading()


def _at_once(
    run: _Run, recipe: Recipe, sets: Sets, spans: Sequence[Spans] | None, checkpoint: str | Path | None
) -> list[Rule]:
    texts, rows = _numbered(sets)
    pooled = collect(
        run.model, run.tokenizer, texts, run.sites, reading=run.reading, checkpoint=checkpoint, spread=run.spread,
        progress=run.progress,
    )  # fmt: skip
    tokens = None
    if spans is not None:
        every = [*sets["source"], *sets["control"]]
        marks = [*spans, *([()] * len(sets["control"]))]
        tokens = collect_tokens(
            run.model, run.tokenizer, every, marks, run.sites, reading=run.reading, progress=run.progress
        )
    rules = []
    with progress_bar(run.progress) as bar:
        for site in bar.track(run.sites, description="fitting sites"):
            of_set = [pooled[site][rows[name]] for name in SETS]
            rules.append(recipe.rule(SiteData(site, *of_set, tokens=tokens)))
    return rules


def _drawn(run: _Run, drawing: Drawing, recipe: Recipe, sets: Sets, checkpoint: str | Path | None) -> list[Rule]:
    assert isinstance(run.model, Parts)
    prompts, rows = _numbered(sets)
    places = places_of(sets, prompts)
    read = collect_drawn(
        run.model, prompts, places, run.sites, drawing=drawing, checkpoint=checkpoint, progress=run.progress
    )
    rules = []
    with progress_bar(run.progress) as bar:
        for site in bar.track(run.sites, description="fitting sites"):
            parts = {name: read[site][members] for name, members in rows.items()}
            data = _pictured(site, parts, drawing)
            steps = parts["source"].shape[1]
            if drawing.per_step and steps > 1:  # the text encoders run once
                each = [{name: x[:, k : k + 1] for name, x in parts.items()} for k in range(steps)]
                data = data._replace(steps=tuple(_pictured(site, one, drawing) for one in each))
            rules.append(recipe.rule(data))
    return rules


def _pictured(site: Site, parts: Mapping[str, Tensor], drawing: Drawing) -> SiteData:
    """Return what one site is fitted on, from vectors (prompt, step, sample, dim) of each set."""
    source, control, target = (parts[name].mean((1, 2)) for name in SETS)
    if drawing.pooling == "mean":
        return SiteData(site, source, control, target)
    samples = {name: x.flatten(0, 2) for name, x in parts.items()}
    both = [parts["source"], parts["control"]]
    owners = torch.arange(sum(map(len, both))).repeat_interleave(both[0].shape[1] * both[0].shape[2])
    shown = torch.arange(len(owners)) < len(samples["source"])
    tokens = LabelledTokens({site: torch.cat([samples["source"], samples["control"]])}, shown, owners)
    return SiteData(site, source, control, target, tokens, (samples["source"], samples["target"]))


def _incrementally(run: _Run, recipe: Recipe, sets: Sets, checkpoint: str | Path | None) -> list[Rule]:
    goal = collect(
        run.model, run.tokenizer, sets["target"], run.sites,
        reading=run.reading, checkpoint=checkpoint, progress=run.progress,
    )  # fmt: skip
    texts, rows = _numbered({name: sets[name] for name in ("source", "control")})
    batches = read_batches(run.tokenizer, texts, run.reading)
    order = torch.tensor([row for batch in batches for row in batch.rows]).argsort()
    pool = pooler(run.reading.pooling, run.reading.skip_sinks)
    rules = []
    with (
        progress_bar(run.progress) as bar,
        PausedPasses(run.model, list(map(inputs_of, batches)), run.sites, pool) as passes,
    ):
        for held in bar.track(passes, total=len(run.sites), description="fitting sites one after another"):
            pooled = torch.cat(held.vectors)[order]
            data = SiteData(held.site, pooled[rows["source"]], pooled[rows["control"]], goal[held.site])
            rules.append(recipe.rule(data))
            passes.steer(rules[-1])
    return rules


def _numbered(sets: Sets) -> tuple[list[str], dict[str, list[int]]]:
    """Return every text once, and for each set which of them are its members."""
    texts = list(dict.fromkeys(text for members in sets.values() for text in members))
    row = {text: number for number, text in enumerate(texts)}
    return texts, {name: [row[text] for text in members] for name, members in sets.items()}


def _checked_sets(source: Sequence[str], control: Sequence[str], target: Sequence[str] | None) -> dict[str, list[str]]:
    if target is None:
        warnings.warn("no target texts were given: the control texts are the target", DsasWarning, stacklevel=3)
        target = control
    sets = {"source": source, "control": control, "target": target}
    checked = {name: check_texts(name, texts) for name, texts in sets.items()}
    for name in ("control", "target"):
        shared = set(checked["source"]) & set(checked[name])
        if shared == set(checked["source"]) | set(checked[name]):
            raise TextsError(f"source and {name} hold the same texts: there is nothing to tell apart")
        if shared:
            warnings.warn(
                f"{len(shared)} texts are both in source and in {name}, for example {min(shared)!r:.60}",
                DsasWarning,
                stacklevel=3,
            )
    return checked
