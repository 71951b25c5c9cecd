"""Token tuning: regulators that were fitted on pooled vectors, tuned on the tokens of texts they did not see.

A regulator acts on single tokens, and pooled vectors cannot say how often it fires on clean ones. So at most `MOST`
texts of each set run once more, and only the score of every token is kept: at each site, the score by the boundary that
was fitted without the token's text (cross-validation). The regulator that is tuned with these scores was fitted on all
texts.

What the tuned regulators do on these tokens is known before anything is generated. If the effect of steering is
proportional to what is added, and damage grows with its power p, then at equal damage a regulator h has this many times
the effect of steering without a regulator:

    worth(p) = mean of h on source / (mean of h^p on control)^(1/p)        over tokens and sites

`worth` is worth(1) and `worth_square` is worth(2); damage was measured to grow with a power between 1 and 2
(docs/lab/findings.md). For p = 2 no function of the same evidence allows more than

    limit = root of the mean over control tokens of r^2,   r the likelihood ratio of source to control

Limitations: `limit` comes from a histogram of 10 bins; all numbers are for the kinds of text that were fitted on.
Incremental fits and pipelines are tuned on pooled vectors and get none of these numbers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from dsas.files.atomic import keep, kept
from dsas.files.json_values import JsonObject
from dsas.fitting.collect import checkpoint_file
from dsas.fitting.collectors import Task
from dsas.methods.tuned_boundary import TokenScores
from dsas.model.activations import TokenProjections
from dsas.model.conversation import Content
from dsas.model.sites import Site
from dsas.parallel.progress import progress_bar
from dsas.regulators.base import Tuned, Untuned
from dsas.runtime.rule import Rule

MOST = 400
BINS = 10


class HeldOutValues(NamedTuple):
    """What regulators do on tokens of texts they were not fitted on.

    source, control: mean value on their tokens. auroc: how often a source token has a higher value than a control
    token, in [0, 1]. worth, worth_square, limit: see the module. texts, tokens: how many were read, of source and
    control.
    """

    source: float
    control: float
    auroc: float
    worth: float
    worth_square: float
    limit: float
    texts: tuple[int, int]
    tokens: tuple[int, int]

    @classmethod
    def of(cls, sites: Sequence[TokenScores]) -> "HeldOutValues":
        """Return the summary of each site's values."""
        source, control = (
            np.stack([np.concatenate(own) for own in sets])
            for sets in ([one.source for one in sites], [one.control for one in sites])
        )
        mean = source.mean(0), control.mean(0)
        return cls(
            source=float(source.mean()),
            control=float(control.mean()),
            auroc=_auroc(*mean),
            worth=float(source.mean() / control.mean()),
            worth_square=float(source.mean() / np.sqrt(np.square(control).mean())),
            limit=_limit(*mean),
            texts=(len(sites[0].source), len(sites[0].control)),
            tokens=(source.shape[1], control.shape[1]),
        )

    def as_dict(self) -> JsonObject:
        """Return the numbers as JSON-ready values."""
        found = self._asdict()
        return {key: list(value) if isinstance(value, tuple) else round(value, 4) for key, value in found.items()}


def tuned_by_tokens(
    task: Task, rules: Sequence[Rule], untuned: Mapping[Site, Untuned]
) -> tuple[list[Rule], HeldOutValues | None]:
    """Return the rules with regulators tuned on tokens, and their values; unchanged rules where none can be tuned."""
    steered = {rule.site: untuned[rule.site] for rule in rules if rule.weight > 0 and rule.site in untuned}
    if not steered or task.examples.incremental:
        return list(rules), None
    directions = {
        site: torch.from_numpy(np.stack([one.theta for one in found.held_out.boundaries], axis=1))
        for site, found in steered.items()
    }
    source, control = task.sets.source, task.sets.control
    texts = [*source[:MOST], *control[:MOST]]
    found = _read(task, texts, directions)
    if found is None:
        return list(rules), None
    places = [*range(len(source[:MOST])), *range(len(source), len(source) + len(control[:MOST]))]
    there = [number for number, counts in enumerate(found.counted) if bool(counts.any())]
    halves = [number for number in there if number < len(source[:MOST])], [n for n in there if n >= len(source[:MOST])]
    flags = [[found.counted[number].numpy() for number in half] for half in halves]
    tuned: dict[Site, Tuned] = {}
    for line, (site, one) in enumerate(steered.items() if all(halves) else ()):
        parts = [[_scores(found.values[n][line], one, places[n]) for n in half] for half in halves]
        tuned[site] = one.tune(TokenScores(parts[0], parts[1], (flags[0], flags[1])))
    rules = [rule._replace(regulator=tuned[rule.site].regulator) if rule.site in tuned else rule for rule in rules]
    return rules, HeldOutValues.of([one.values for one in tuned.values()]) if tuned else None


def _read(task: Task, texts: Sequence[Content], directions: Mapping[Site, Tensor]) -> TokenProjections | None:
    """Return the projections of each text's tokens on the directions, from the checkpoint where it has them."""
    marks = hashlib.sha256(b"".join(one.numpy().tobytes() for one in directions.values())).hexdigest()
    depends = [list(map(repr, directions)), task.examples.depends(texts, range(len(texts))), "token scores", marks]
    file = checkpoint_file(task.subject.module, depends, task.checkpoint)
    data = None if file is None else kept(file, "the texts are run again")
    if data is not None:
        read = load(data)
        lengths = read["lengths"].tolist()
        return TokenProjections(list(read["values"].split(lengths, dim=1)), list(read["counted"].bool().split(lengths)))
    with progress_bar(task.progress) as bar:
        number = bar.add_task("tuning regulators", total=None)
        found = task.examples.token_scores(texts, directions, lambda: bar.advance(number))
    if file is not None and found is not None:
        lengths = torch.tensor([values.shape[1] for values in found.values])
        named = {"values": torch.cat(found.values, dim=1), "counted": torch.cat(found.counted).to(torch.uint8)}
        keep(file, save({**named, "lengths": lengths}))
    return found


def _scores(values: Float[Tensor, "token fold"], untuned: Untuned, place: int) -> Float[np.ndarray, " token"]:
    """Return the scores of one text's tokens by the boundary that was fitted without it."""
    fold = int(untuned.held_out.folds[place])
    return values[:, fold].double().numpy() + untuned.held_out.boundaries[fold].bias


def _auroc(above: Float[np.ndarray, " token"], below: Float[np.ndarray, " token2"]) -> float:
    ranked = np.sort(below)
    beaten = (np.searchsorted(ranked, above, "left") + np.searchsorted(ranked, above, "right")) / 2
    return float(beaten.mean() / len(below))


def _limit(source: Float[np.ndarray, " token"], control: Float[np.ndarray, " token2"]) -> float:
    both = np.concatenate([source, control])
    edges = np.unique(np.quantile(both, np.linspace(0, 1, BINS + 1)[1:-1], method="lower"))
    filled = np.unique(np.searchsorted(edges, both, "right"))  # half a token is added to each bin that is not empty
    counts = [np.bincount(np.searchsorted(edges, own, "right"), minlength=len(edges) + 1) for own in (source, control)]
    shares = [(own[filled] + 0.5) / (own.sum() + 0.5 * len(filled)) for own in counts]
    return float(np.sqrt((shares[0] ** 2 / shares[1]).sum()))
