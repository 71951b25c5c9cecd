"""Fit: source, control and target texts in, a Steering out, in closed form and from the unsteered model.

Source and target say HOW to steer, source and control WHEN. Every text runs through the model once; all sites are read
in the same pass, and of each text only one vector per site is kept. Source: DSAS (arXiv 2512.03661, sections 3, 4).
Left out: incremental fitting (each site with the earlier ones already steered).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from jaxtyping import Float
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from dsas.applied import Rule
from dsas.collection import Reading, collect, progress_bar
from dsas.errors import DsasWarning, OptionError, TextsError, closest
from dsas.hooks import uncompiled
from dsas.identity import ModelIdentity
from dsas.regulators import REGULATORS, FittedRegulator
from dsas.sites import DEFAULT_SITES, Site, SitePatterns, find_sites
from dsas.steering import Steering
from dsas.text import check_texts
from dsas.transforms import TRANSFORMS, Transform

Selection = Literal["threshold", "smooth", "all"]
Pooled = Mapping[Site, Float[Tensor, "text dim"]]
FitTransform = Callable[[Tensor, Tensor], Transform]
FitRegulator = Callable[[Tensor, Tensor], FittedRegulator]


def fit(
    model: nn.Module,
    tokenizer: Any,
    *,
    source: Sequence[str],
    control: Sequence[str],
    target: Sequence[str] | None = None,
    transform: str | FitTransform = "caa",
    regulator: str | FitRegulator = "logistic",
    sites: SitePatterns = DEFAULT_SITES,
    selection: Selection = "threshold",
    threshold: float = 0.75,
    reading: Reading = Reading(),
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Steering:
    """Fit a Steering for `model` from three sets of texts, at least 4 in each; the model is not changed.

    source: texts that show the undesired behaviour. control: neutral texts that must stay as they are; they must match
    the source in style and length, or the regulator learns the genre. target: the desired behaviour; the control set
    when not given, with a warning that says so.
    transform, regulator: a name from `dsas.TRANSFORMS`, `dsas.REGULATORS`, or a function with the signature of their
    `fit`, such as `functools.partial(dsas.Logistic.fit, components=8)`.
    sites: shorthand, path, glob or "re:..." regular expression, one or several.
    selection: "threshold" steers sites whose held-out accuracy is at least `threshold` (0 to 1), "smooth" weights each
    site by max(0, 2 * accuracy - 1), "all" steers everywhere; sites without an accuracy are always steered.
    reading: how a text becomes a vector. checkpoint: folder that keeps what was collected, to resume from.
    Raises TextsError, SiteError, OptionError, ActivationError.
    """
    if selection not in get_args(Selection) or not 0 <= threshold <= 1:
        raise OptionError(
            f"selection must be one of {get_args(Selection)} and threshold from 0 to 1, got {selection!r}, {threshold}"
        )
    fit_transform = _method(transform, TRANSFORMS, "transform")
    fit_regulator = _method(regulator, REGULATORS, "regulator")
    sets = _checked_sets(source, control, target)
    model = uncompiled(model)
    found = find_sites(model, sites)
    texts = list(dict.fromkeys(text for members in sets.values() for text in members))
    pooled = collect(model, tokenizer, texts, found, reading=reading, checkpoint=checkpoint, progress=progress)
    row = {text: number for number, text in enumerate(texts)}
    rows = {name: [row[text] for text in members] for name, members in sets.items()}
    rules = []
    # Matrices this small gain nothing from BLAS threads, which then take the cores from torch's own while they wait.
    with progress_bar(progress) as bar, threadpool_limits(1, user_api="blas"):
        for site in bar.track(found, description="fitting sites"):
            of_set = {name: pooled[site][members] for name, members in rows.items()}
            regulated = fit_regulator(of_set["source"], of_set["control"])
            weight = _weight(regulated.accuracy, selection, threshold)
            transformed = fit_transform(of_set["source"], of_set["target"])
            rules.append(Rule(site, transformed, regulated.regulator, weight, regulated.accuracy))
    if not any(rule.weight for rule in rules):
        best = max(rule.accuracy or 0.0 for rule in rules)
        warnings.warn(
            f"no site tells source from control well enough (best held-out accuracy {best:.2f}, threshold "
            f"{threshold}): nothing will be steered; give more texts, other sites, or selection='smooth'",
            DsasWarning,
            stacklevel=2,
        )
    settings = {
        "transform": getattr(rules[0].transform, "name", type(rules[0].transform).__name__),
        "regulator": getattr(rules[0].regulator, "name", type(rules[0].regulator).__name__),
        "selection": selection if selection != "threshold" else f"threshold {threshold}",
        "texts": {name: len(members) for name, members in sets.items()},
        "reading": reading._asdict(),
    }
    return Steering(rules, ModelIdentity.of(model), settings)


def _method(method: str | Callable[..., Any], registry: Mapping[str, Any], kind: str) -> Callable[..., Any]:
    if callable(method):
        return method
    if method not in registry:
        raise OptionError(f"unknown {kind} {method!r}; closest: {closest(method, registry)}")
    return registry[method].fit


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


def _weight(accuracy: float | None, selection: Selection, threshold: float) -> float:
    if accuracy is None or selection == "all":
        return 1.0
    if selection == "smooth":
        return max(0.0, 2 * accuracy - 1)
    return 1.0 if accuracy >= threshold else 0.0
