"""Firing: what a Steering's regulators fire on, by kind of text, before anything is steered.

    value(token) = mean over steered sites of h_site(t),     with t from the unsteered model

For each kind of text: the mean value, the share of (token, site) pairs above one half, and, against the first kind,
the AUROC of a token's value: how often a token of the first kind has a higher value than one of this kind (ties count
half). A regulator that leaves other texts alone has values near 0 on every kind but the first, including kinds that it
was not fitted on. Intervals are bootstrapped over texts, whose tokens resemble each other.

The Steering is applied with a transform that changes nothing, so every regulator runs as it does when it steers, with
caches, masks and sinks, and no site sees the edit of an earlier one.

General text, which no Steering was fitted on, is what the model writes freely (`general_texts`). `general_firing`
compares it with the source, and `dsas fit` does so after fitting.

Limitations: texts, and answers of conversations, are cut after `max_tokens` tokens, with a warning; special tokens of
texts count like all others.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from dsas.errors import DsasWarning, OptionError
from dsas.evaluation.intervals import Interval, draw_counts, percentile_interval
from dsas.evaluation.own_words import general_texts
from dsas.files.json_values import JsonObject
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.examples import Given
from dsas.model.foreign import Model, Tokenizer
from dsas.model.rendering import Rendered, read_through
from dsas.model.running import run_on
from dsas.model.token_batches import batches, inputs_of
from dsas.model.tokenizing import pad_token
from dsas.parallel.progress import progress_bar
from dsas.runtime.unchanged import only_asked
from dsas.steering.steering import Steering

RESAMPLES = 1000
GENERAL = "general text"
FIRES_ALIKE = 0.5  # there is a warning for a kind whose mean value exceeds this share of the first kind's


@dataclass(frozen=True)
class Firing:
    """What regulators do on one kind of text.

    value: mean regulator value. above_half: share in [0, 1] of (token, site) pairs whose value exceeds one half.
    auroc: how well the regulator separates tokens of the first kind from those of this kind, in [0, 1]; None for the
    first kind itself. tokens: how many were read.
    """

    kind: str
    value: Interval
    above_half: Interval
    auroc: Interval | None
    tokens: int


@dataclass(frozen=True)
class FiringReport:
    """What a Steering fires on: one `Firing` for each kind of text, the first of which is the behaviour itself.

    by_site: mean value for each steered site, in the order of the model, by kind.
    """

    kinds: tuple[Firing, ...]
    sites: tuple[str, ...]
    by_site: dict[str, tuple[float, ...]]

    def warnings(self) -> list[str]:
        """Return a line, with the remedy, for each kind on which the regulators fire nearly as much as on the first."""
        first, *others = self.kinds
        return [
            f"fires on {one.kind} at {one.value.mean / first.value.mean:.0%} of its value on {first.kind}: put texts "
            f"like these into the control set (half of it is a good start) and fit again"
            for one in others
            if one.value.mean > FIRES_ALIKE * first.value.mean
        ]

    def rows(self) -> list[JsonObject]:
        """Return a row per kind of text, site and measure; without a site, over all sites with its 95 % interval."""
        found: list[JsonObject] = []
        for one in self.kinds:
            measures = {"regulator": one.value, "above one half": one.above_half, "AUROC of a token": one.auroc}
            found += [
                {"kind": one.kind, "site": None, "measure": name, **value._asdict()}
                for name, value in measures.items()
                if value is not None
            ]
            unknown = {"low": None, "high": None, "n": one.value.n}
            found += [
                {"kind": one.kind, "site": site, "measure": "regulator", "mean": mean, **unknown}
                for site, mean in zip(self.sites, self.by_site[one.kind], strict=True)
            ]
        return found

    def as_dict(self) -> JsonObject:
        """Return the report as JSON-ready values."""
        return {
            "kinds": [_plain(one) for one in self.kinds],
            "sites": list(self.sites),
            "by_site": {kind: list(values) for kind, values in self.by_site.items()},
            "warnings": self.warnings(),
        }


def fires_on(
    model: Model,
    tokenizer: Tokenizer,
    steering: Steering,
    texts: Mapping[str, Sequence[Given]],
    *,
    max_tokens: int = 50,
    batch_size: int = 32,
    progress: bool = True,
) -> FiringReport:
    """Return what `steering` fires on, by kind of text; the first kind should be the behaviour itself.

    texts: texts by kind, each cut to `max_tokens`, with a warning. Intervals are from 1000 draws, seed 0.
    Raises OptionError for no kinds or numbers < 1, TextsError for a kind without texts, and what `Steering.apply`
    raises.
    """
    if not texts or min(max_tokens, batch_size) < 1:
        raise OptionError(
            f"expected at least one kind of text and max_tokens, batch_size >= 1, got {len(texts)} kinds and "
            f"{max_tokens}, {batch_size}"
        )
    rules = only_asked(steering.rules)
    if not rules:
        raise OptionError("expected a Steering with a site that is steered, got one whose weights are all 0")
    quiet, read, names = Steering(rules, steering.model), dict[str, list[np.ndarray]](), ()
    with torch.no_grad(), evaluation_mode(model), quiet.apply(model, 1.0) as applied, progress_bar(progress) as bar:
        task = bar.add_task("reading texts", total=sum(map(len, texts.values())))
        for kind, own in texts.items():
            rows = _cut(read_through(tokenizer, own, max_tokens + 1), max_tokens, kind)
            ids, counted = [row.ids for row in rows], [row.counted for row in rows]
            read[kind] = [np.zeros(0)] * len(rows)
            for batch in batches(ids, batch_size, pad=pad_token(tokenizer), side="right", counted=counted):
                run_on(model, inputs_of(batch))
                trace = applied.trace()
                names = trace.sites
                for place, row in enumerate(batch.rows):
                    values = trace.strengths[:, place, trace.real[place]].double().numpy()
                    counts = batch.counted[place][batch.mask[place]].numpy()
                    read[kind][row] = values[:, len(values[0]) - len(counts) :][:, counts]
                bar.advance(task, len(batch.rows))
    first = next(iter(read))
    found = [_firing(kind, read[kind], read[first] if kind != first else None) for kind in read]
    by_site = {kind: tuple(np.concatenate(own, axis=1).mean(1).tolist()) for kind, own in read.items()}
    return FiringReport(tuple(found), tuple(names), by_site)


def general_firing(
    model: Model,
    tokenizer: Tokenizer,
    steering: Steering,
    source: Sequence[Given],
    *,
    n: int = 40,
    max_tokens: int = 512,
    progress: bool = True,
) -> FiringReport:
    """Return how `steering` fires on `n` texts that the model writes freely, and on the first `n` of the source.

    The source texts may be those that were fitted on; regulators fire a little more on them than on others. max_tokens:
    as in `fires_on`.
    Raises OptionError for n < 1, TextsError for a model that does not write enough.
    """
    general = general_texts(model, tokenizer, n, progress=progress)
    texts = {"source": source[:n], GENERAL: general}
    return fires_on(model, tokenizer, steering, texts, max_tokens=max_tokens, progress=progress)


def _cut(rows: Sequence[Rendered], max_tokens: int, kind: str) -> list[Rendered]:
    """Return the rows cut to length (they are at most one token too long); warn of how many were cut."""
    found = [row.cut_answer(max_tokens) for row in rows]
    longer = sum(len(row.ids) > len(part.ids) for row, part in zip(rows, found, strict=True))
    if longer:
        warnings.warn(
            f"{longer} of {len(rows)} texts of {kind} were cut to max_tokens={max_tokens}: what a regulator does "
            "after that is not known",
            DsasWarning,
            stacklevel=3,
        )
    return found


def _firing(kind: str, texts: list[np.ndarray], first: list[np.ndarray] | None) -> Firing:
    sizes = np.array([text.size for text in texts], dtype=np.float64)
    draws = draw_counts(len(texts), resamples=RESAMPLES, seed=0)

    def share(sums: np.ndarray) -> Interval:
        return percentile_interval(float(sums.sum() / sizes.sum()), draws @ sums / (draws @ sizes), len(texts))

    return Firing(
        kind,
        share(np.array([text.sum() for text in texts])),
        share(np.array([float((text > 0.5).sum()) for text in texts])),
        None if first is None else _auroc(first, texts),
        sum(text.shape[1] for text in texts),
    )


def _auroc(above: list[np.ndarray], below: list[np.ndarray]) -> Interval:
    """Return how often a token of the one has a higher value than one of the other; each side is resampled by text."""
    values = np.concatenate([text.mean(0) for text in [*above, *below]])
    owner = np.repeat(np.arange(len(above) + len(below)), [text.shape[1] for text in [*above, *below]])
    order = np.argsort(values, kind="stable")
    _, ties = np.unique(values[order], return_inverse=True)
    high = owner[order] < len(above)

    def measured(weights: np.ndarray) -> float:
        own = weights[owner[order]]
        ones = np.bincount(ties, own * high)
        zeros = np.bincount(ties, own * ~high)
        beaten = np.cumsum(zeros) - zeros / 2
        return float((ones * beaten).sum() / (ones.sum() * zeros.sum()))

    tops = draw_counts(len(above), resamples=RESAMPLES, seed=[0, 0])
    bottoms = draw_counts(len(below), resamples=RESAMPLES, seed=[0, 1])
    drawn = np.array([measured(np.concatenate(pair)) for pair in zip(tops, bottoms, strict=True)])
    everything = np.ones(len(above) + len(below))
    return percentile_interval(measured(everything), drawn, len(above) + len(below))


def _plain(one: Firing) -> JsonObject:
    found = asdict(one)
    for name in ("value", "above_half", "auroc"):
        interval: Interval | None = getattr(one, name)
        found[name] = None if interval is None else interval._asdict()
    return found
