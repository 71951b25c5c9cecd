"""Fit: source, control and target examples in, a Steering out, in closed form.

Source and target say HOW to steer, source and control WHEN. Every example runs through the model once; all sites are
read in the same pass, and only one vector per example and site is kept. Source: DSAS (arXiv 2512.03661, sections 3, 4).

By default, all sites are fitted on the unsteered model at once. Incrementally, each site is fitted on source and
control activations that the earlier sites have already steered, and on unsteered target activations (AcT, arXiv
2410.23054, section 3.2); every example still runs only once, see `dsas.fitting.incremental`. Limitations: one round
only.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from dsas.errors import OptionError, TextsError
from dsas.files.json_values import Json
from dsas.fitting.collectors import Task, collected
from dsas.fitting.method_names import FitRegulator, FitTransform, regulator_fit, takes_pairs, transform_fit
from dsas.fitting.selection import Selection, Threshold, selection_of
from dsas.fitting.site_rule import Recipe, SiteFit, describe, select
from dsas.fitting.token_tuning import tuned_by_tokens
from dsas.model.drawing import Drawing
from dsas.model.examples import ExampleSets, Given, check_sets
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
    source: Sequence[Given],
    control: Sequence[Given],
    target: Sequence[Given] | None = None,
    transform: str | Transform | FitTransform = "caa",
    regulator: str | Regulator | FitRegulator = "auto",
    sites: SitePatterns = DEFAULT_SITES,
    selection: Selection | str = Threshold(),
    reading: Reading | Drawing | None = None,
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
    `Reading(incremental=True)` fits each site with the earlier ones already steered. checkpoint: folder that keeps what
    was collected, to resume from; with incremental reading only the target's activations.
    Raises TextsError, SiteError, OptionError, ActivationError. While another Steering is applied to the model, it warns
    and notes this in the settings.
    """
    chosen, how = selection_of(selection), transform_fit(transform)
    if regulator != AUTO:
        regulator_fit(regulator)
    sets = _paired(check_sets(source, control, target), how)
    subject = subject_of(model, tokenizer)
    examples = subject.examples(reading)
    examples.check(sets)
    if regulator == AUTO:
        regulator = examples.regulator if sets.spans is None else "logistic"
    recipe = Recipe(how, regulator_fit(regulator), chosen)
    found = subject.sites(sites)
    steered = check_unsteered(subject.module, "fitting")
    task = Task(subject, examples, sets, found, checkpoint, progress)
    # Matrices this small gain nothing from BLAS threads, which would keep cores from torch while they wait.
    # The result can be trained later, even if the caller has switched gradients off.
    with threadpool_limits(1, user_api="blas"), torch.inference_mode(False):
        fitted = _fitted(task, recipe)
        rules = select(sorted((one.rule for one in fitted), key=lambda rule: found.index(rule.site)), chosen)
        _check_clean(subject, rules)
        untuned = {one.rule.site: one.untuned for one in fitted if one.untuned is not None}
        rules, values = tuned_by_tokens(task, rules, untuned)
    settings = {
        "transform": getattr(rules[0].transform, "name", type(rules[0].transform).__name__),
        "regulator": describe(rules[0].regulator),
        "selection": chosen.describe(),
        "texts": {name: len(members) for name, members in sets.as_dict().items()},
        "examples": sets.kind,
        "reading": examples.as_dict(),
        "fitted": "incrementally" if examples.incremental else "at once",
        "labels": "texts" if sets.spans is None else "tokens",
        **({"read while steered at": list[Json](steered)} if steered else {}),
    }
    if values is not None:
        settings["held_out_tokens"] = values.as_dict()
    return Steering(rules, subject.identity, settings)


def _paired(sets: ExampleSets, transform: FitTransform) -> ExampleSets:
    """Return the sets. Raises TextsError for a transform of pairs when source and target do not form pairs."""
    if takes_pairs(transform) and len(sets.source) != len(sets.target):
        raise TextsError(
            "this transform learns from pairs, source[i] with target[i]: expected as many source texts as "
            f"target texts, got {len(sets.source)} and {len(sets.target)}; 'linear-act' needs no pairs"
        )
    return sets


def _check_clean(subject: Subject, rules: Sequence[Rule]) -> None:
    """Raise OptionError for regulators that read clean at sites where earlier edits cannot be subtracted."""
    clean = [rule.site for rule in rules if rule.regulator.reads_additions]
    if not clean:
        return
    stream = subject.sites("residual")
    others = [str(site) for site in clean if site not in stream]
    if others:
        raise OptionError(
            f"reading clean subtracts what was added to the residual stream, and {others[0]} is not on it: use "
            'sites="residual", or the regulator as it is'
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
