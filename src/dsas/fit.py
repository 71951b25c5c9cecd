"""Fit: source, control and target texts in, a Steering out, in closed form.

Source and target say HOW to steer, source and control WHEN. Every text runs through the model once; all sites are read
in the same pass, and of each text only one vector per site is kept. Source: DSAS (arXiv 2512.03661, sections 3, 4).

At once, every site is fitted on the unsteered model. Incrementally, each is fitted on source and control activations
that the earlier sites have steered already, and on unsteered target activations (AcT, arXiv 2410.23054, section 3.2);
every text still runs once, see `dsas.incremental`. Left out: several rounds.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from dsas.activations import pooler
from dsas.applied import Rule
from dsas.collection import LabelledTokens, Reading, collect, collect_tokens, inputs_of, progress_bar, read_batches
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.hooks import uncompiled
from dsas.identity import ModelIdentity
from dsas.incremental import PausedPasses
from dsas.methods import FitRegulator, FitTransform, regulator_fit, transform_fit
from dsas.regulators import Product, Regulator
from dsas.separation import Labelled, held_out_accuracy, separate
from dsas.sites import DEFAULT_SITES, Site, SitePatterns, find_sites
from dsas.steering import Steering
from dsas.text import Spans, check_spans, check_texts
from dsas.transforms import Transform

Selection = Literal["threshold", "smooth", "top", "all"]
Sets = Mapping[str, list[str]]


def fit(
    model: nn.Module,
    tokenizer: Any,
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
    reading: Reading = Reading(),
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Steering:
    """Fit a Steering for `model` from three sets of texts, at least 4 in each; the model is not changed.

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
    reading: how a text becomes a vector. checkpoint: folder that keeps what was collected, to resume from; of an
    incremental fit that is the target's part only.
    Raises TextsError, SiteError, OptionError, ActivationError.
    """
    choice = _Choice(selection, threshold, top)
    choice.check()
    recipe = _Recipe(transform_fit(transform), regulator_fit(regulator), choice)
    sets = _checked_sets(source, control, target)
    if spans is not None:
        check_spans(sets["source"], spans)
        if incremental:
            raise OptionError("spans and incremental cannot be combined: tokens are read from the unsteered model")
    model = uncompiled(model)
    found = find_sites(model, sites)
    run = _Run(model, tokenizer, found, reading, progress)
    # Matrices this small gain nothing from BLAS threads, which then take the cores from torch's own while they wait.
    with threadpool_limits(1, user_api="blas"):
        if incremental:
            rules = _incrementally(run, recipe, sets, checkpoint)
        else:
            rules = _at_once(run, recipe, sets, spans, checkpoint)
    rules = choice.of(sorted(rules, key=lambda rule: found.index(rule.site)))
    settings = {
        "transform": getattr(rules[0].transform, "name", type(rules[0].transform).__name__),
        "regulator": _said(rules[0].regulator),
        "selection": choice.said(),
        "texts": {name: len(members) for name, members in sets.items()},
        "reading": reading._asdict(),
        "fitted": "incrementally" if incremental else "at once",
        "labels": "texts" if spans is None else "tokens",
    }
    return Steering(rules, ModelIdentity.of(model), settings)


class _Run(NamedTuple):
    """What is read, and how."""

    model: nn.Module
    tokenizer: Any
    sites: list[Site]
    reading: Reading
    progress: bool


class _Choice(NamedTuple):
    """Which sites are steered."""

    selection: Selection
    threshold: float
    top: int

    def check(self) -> None:
        if self.selection not in get_args(Selection) or not 0 <= self.threshold <= 1 or self.top < 1:
            raise OptionError(
                f"selection must be one of {get_args(Selection)}, threshold from 0 to 1 and top >= 1, "
                f"got {self.selection!r}, {self.threshold}, {self.top}"
            )

    def said(self) -> str:
        value = {"threshold": f" {self.threshold}", "top": f" {self.top}"}
        return self.selection + value.get(self.selection, "")

    def weight(self, accuracy: float | None) -> float:
        if accuracy is None or self.selection in ("all", "top"):
            return 1.0
        if self.selection == "smooth":
            return max(0.0, 2 * accuracy - 1)
        return 1.0 if accuracy >= self.threshold else 0.0

    def of(self, rules: list[Rule]) -> list[Rule]:
        """Return the rules with the weights that need all of them to be known; warn when nothing is left."""
        if self.selection == "top":
            best = sorted(range(len(rules)), key=lambda number: -(rules[number].accuracy or 0.0))[: self.top]
            rules = [rule._replace(weight=float(number in best)) for number, rule in enumerate(rules)]
        if not any(rule.weight for rule in rules):
            best = max(rule.accuracy or 0.0 for rule in rules)
            warnings.warn(
                f"no site tells source from control well enough (best held-out accuracy {best:.2f}, threshold "
                f"{self.threshold}): nothing will be steered; give more texts, other sites, or selection='smooth'",
                DsasWarning,
                stacklevel=3,
            )
        return rules


class _Site(NamedTuple):
    """What one site is fitted on: pooled vectors (text, dim), and labelled tokens where the source has spans."""

    site: Site
    source: Float[Tensor, "text dim"]
    control: Float[Tensor, "text2 dim"]
    target: Float[Tensor, "text3 dim"]
    tokens: LabelledTokens | None = None


class _Recipe(NamedTuple):
    """How one site becomes a rule."""

    transform: FitTransform
    regulator: FitRegulator
    choice: _Choice

    def rule(self, data: _Site) -> Rule:
        """Fit regulator and transform at one site."""
        fitted = self._regulated(data)
        accuracy = fitted.accuracy
        if accuracy is None and self.choice.selection == "top":
            draw = partial(separate, components=5)
            accuracy = held_out_accuracy(Labelled.of(data.source, data.control), draw)
        weight = self.choice.weight(accuracy)
        return Rule(data.site, self.transform(data.source, data.target), fitted.regulator, weight, accuracy)

    def _regulated(self, data: _Site) -> Any:
        if data.tokens is None:
            return self.regulator(data.source, data.control, data.target)
        vectors, shown, texts = data.tokens.vectors[data.site], data.tokens.shown, data.tokens.texts
        try:
            return self.regulator(
                vectors[shown], vectors[~shown], data.target, groups=torch.cat([texts[shown], texts[~shown]])
            )
        except TypeError as error:
            if "groups" not in str(error):
                raise
            raise OptionError(
                "this regulator cannot learn from spans, since its fit takes no groups; use 'logistic'"
            ) from error


def _at_once(
    run: _Run, recipe: _Recipe, sets: Sets, spans: Sequence[Spans] | None, checkpoint: str | Path | None
) -> list[Rule]:
    texts, rows = _numbered(sets)
    pooled = collect(
        run.model, run.tokenizer, texts, run.sites, reading=run.reading, checkpoint=checkpoint, progress=run.progress
    )
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
            of_set = {name: pooled[site][members] for name, members in rows.items()}
            rules.append(recipe.rule(_Site(site, **of_set, tokens=tokens)))
    return rules


def _incrementally(run: _Run, recipe: _Recipe, sets: Sets, checkpoint: str | Path | None) -> list[Rule]:
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
            data = _Site(held.site, pooled[rows["source"]], pooled[rows["control"]], goal[held.site])
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


def _said(regulator: Regulator) -> str:
    factors = list(regulator.factors) if isinstance(regulator, Product) else [regulator]
    return "*".join(str(getattr(factor, "name", type(factor).__name__)) for factor in factors)
