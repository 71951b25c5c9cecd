"""Fit: source, control and target examples in, a Steering out, in closed form.

Source and target say HOW to steer, source and control WHEN. Every example runs through the model once; all sites are
read in the same pass, and only one vector per example and site is kept, of at most as many examples as the reservoir
holds (`dsas.fitting.gathering`). Source: DSAS (arXiv 2512.03661, sections 3, 4).

By default, all sites are fitted on the unsteered model at once. Incrementally, each site is fitted on source and
control activations that the earlier sites have already steered, and on unsteered target activations (AcT, arXiv
2410.23054, section 3.2); every example still runs only once, see `dsas.fitting.incremental`. Limitations: one round
only.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from dsas.errors import OptionError, TextsError
from dsas.files.json_values import Json, JsonObject
from dsas.fitting.collectors import Task, collected
from dsas.fitting.example_stream import ExampleStream, Reservoir, sampled
from dsas.fitting.gathering import Gathered, Gathering, gathered
from dsas.fitting.method_names import FitRegulator, FitTransform, regulator_fit, takes_pairs, transform_fit
from dsas.fitting.selection import Selection, Threshold, selection_of
from dsas.fitting.site_rule import Recipe, SiteFit, describe, select
from dsas.fitting.token_tuning import tuned_by_tokens
from dsas.model.drawing import Drawing
from dsas.model.examples import Given, check_sets
from dsas.model.foreign import Model, Tokenizer
from dsas.model.reading import Reading
from dsas.model.sites import DEFAULT_SITES, SitePatterns
from dsas.model.subject import Subject, subject_of
from dsas.parallel.progress import progress_bar
from dsas.regulators.base import Regulator
from dsas.runtime.fuse import check_unsteered
from dsas.runtime.rule import Rule
from dsas.steering.steering import Steering
from dsas.transforms.base import Transform

AUTO = "auto"


def fit(
    model: Model,
    tokenizer: Tokenizer = None,
    *,
    source: Iterable[Given],
    control: Iterable[Given],
    target: Iterable[Given] | None = None,
    transform: str | Transform | FitTransform = "caa",
    regulator: str | Regulator | FitRegulator = "auto",
    sites: SitePatterns = DEFAULT_SITES,
    selection: Selection | str = Threshold(),
    reading: Reading | Drawing | None = None,
    reservoir: Reservoir | int = 4096,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Steering:
    """Fit a Steering for `model` from three sets of examples, at least 4 in each; the model is not changed.

    model: a language model, with its tokenizer; or a diffusers pipeline, whose examples are prompts.
    An example is a text; a conversation, [{"role": ..., "content": ...}, ...] or {"messages": ...}; or a prompt with
    what follows it, {"prompt": ..., "completion": ...}. {"chosen": ..., "rejected": ...} are target and source.
    source: shows the undesired behaviour; `dsas.Example(text, spans)` marks where, and the regulator then learns from
    single tokens. control: neutral, must stay as it is; it must match the source in style and length, or the regulator
    learns the genre. target: the desired behaviour; the control set when not given, with a warning that says so.
    transform, regulator: a name from `dsas.TRANSFORMS`, `dsas.REGULATORS` (or a product of names, such as
    "logistic*posterior"); an object to use at every site, such as `dsas.Custom(function)`; or a function with the
    signature of their `fit`, such as `functools.partial(dsas.Evidence.fit, false_positives=0.01)`. "auto" is "evidence"
    for texts that are read as means of their tokens, and the paper's "logistic" otherwise.
    sites: shorthand, layer number, path, glob or "re:..." regular expression, one or several.
    selection: which sites are steered: `Threshold(0.75)`, `Smooth()`, `Top(48)`, `All()`, or one of their names.
    reading: how an example becomes a vector: `Reading` for texts and conversations, which says which tokens count, or
    `Drawing` for prompts of a pipeline; their defaults when not given.
    `Reading(incremental=True)` fits each site with the earlier ones already steered.
    reservoir: how many examples of each set are kept, 4096 or `Reservoir(size, seed)`. A set may be of any length, also
    a generator. If it is longer, every example is run, and transforms that need means and spreads only ("caa",
    "mean-act", "gaussian-act") are fitted on all of them; regulators and other transforms on a uniform sample of that
    size, and incremental reading runs no others.
    checkpoint: folder that keeps what was collected, to resume from; with incremental reading only the target's
    activations.
    Raises TextsError, SiteError, OptionError, ActivationError. While another Steering is applied to the model, it warns
    and notes this in the settings.
    """
    chosen, how = selection_of(selection), transform_fit(transform)
    if regulator != AUTO:
        regulator_fit(regulator)
    stream = ExampleStream(source, control, target, reservoir)
    sets = check_sets(stream.first["source"], stream.first["control"], stream.first.get("target"))
    _check_pairs({name: len(members) for name, members in sets.as_dict().items()}, how)
    stream.check(sets)
    subject = subject_of(model, tokenizer)
    examples = subject.examples(reading)
    examples.check(sets)
    if regulator == AUTO:
        regulator = examples.regulator if sets.spans is None else "logistic"
    recipe = Recipe(how, regulator_fit(regulator), chosen)
    found = subject.sites(sites)
    steered = check_unsteered(subject.module, "fitting")
    # Matrices this small gain nothing from BLAS threads, which would keep cores from torch while they wait.
    # The result can be trained later, even if the caller has switched gradients off.
    with threadpool_limits(1, user_api="blas"), torch.inference_mode(False):
        kept = _read(Gathering(examples, stream, sets, found, checkpoint, progress))
        sets = kept.sampled.sets
        _check_pairs(kept.sampled.counts, how)
        task = Task(subject, examples, sets, found, checkpoint, progress, kept)
        fitted = _fitted(task, recipe)
        rules = select(sorted((one.rule for one in fitted), key=lambda rule: found.index(rule.site)), chosen)
        _check_clean(subject, rules)
        untuned = {one.rule.site: one.untuned for one in fitted if one.untuned is not None}
        rules, values = tuned_by_tokens(task, rules, untuned)
    settings = _settings(task, rules, chosen, exact=all(one.of_moments for one in fitted))
    if steered:
        settings["read while steered at"] = list[Json](steered)
    if values is not None:
        settings["held_out_tokens"] = values.as_dict()
    return Steering(rules, subject.identity, settings)


def _settings(task: Task, rules: Sequence[Rule], selection: Selection, *, exact: bool) -> JsonObject:
    """Return how the rules were fitted, JSON-ready. exact: whether transforms were fitted on all examples there are."""
    sets, kept = task.sets, task.gathered.sampled
    found: JsonObject = {
        "transform": getattr(rules[0].transform, "name", type(rules[0].transform).__name__),
        "regulator": describe(rules[0].regulator),
        "selection": selection.describe(),
        "texts": dict(kept.counts),
        "examples": sets.kind,
        "reading": task.examples.as_dict(),
        "fitted": "incrementally" if task.examples.incremental else "at once",
        "labels": "texts" if sets.spans is None else "tokens",
    }
    if kept.some_left_out:
        found["reservoir"] = kept.as_dict("all examples" if exact else "reservoir")
    return found


def _read(task: Gathering) -> Gathered:
    """Return what is kept of all examples; where sites are read one after another, which takes them all, no vectors."""
    if not task.examples.incremental:
        return gathered(task)
    return Gathered(sampled(task.stream, task.sets), by_position=task.examples.by_position)


def _check_pairs(counts: Mapping[str, int], transform: FitTransform) -> None:
    """Raise TextsError for a transform of pairs when source and target do not form pairs."""
    if takes_pairs(transform) and counts["source"] != counts["target"]:
        raise TextsError(
            "this transform learns from pairs, source[i] with target[i]: expected as many source texts as "
            f"target texts, got {counts['source']} and {counts['target']}; 'linear-act' needs no pairs"
        )


def _check_clean(subject: Subject, rules: Sequence[Rule]) -> None:
    """Raise OptionError for regulators that read clean at sites where earlier edits cannot be subtracted."""
    clean = [rule.site for rule in rules if rule.regulator.reads_additions]
    if not clean:
        return
    stream = subject.sites("residual")
    others = [str(site) for site in clean if site not in stream]
    if others:
        raise OptionError(
            f"dsas.Clean subtracts what earlier sites added to the residual stream, and {others[0]} is not on it: use "
            'sites="residual", or the regulator without dsas.Clean'
        )


def _fitted(task: Task, recipe: Recipe) -> list[SiteFit]:
    fitted: list[SiteFit] = []
    with closing(collected(task)) as sites, progress_bar(task.progress) as bar:
        number = bar.add_task("fitting sites", total=len(task.sites))
        data = next(sites)
        while True:
            fitted.append(recipe.fitted(data))
            bar.advance(number)
            try:
                data = sites.send(fitted[-1].rule)
            except StopIteration:
                return fitted
