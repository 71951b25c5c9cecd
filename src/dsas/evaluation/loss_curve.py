"""Loss curves: how much log-probability texts lose under a Steering, at one strength after another.

    loss(text)  = mean over the text's tokens but the first of  log p_unsteered - log p_steered     in nats per token
    damage(s)   = mean over kinds of control text of the mean loss over that kind's texts           at strength s

For conversations, and for prompts with completions, the mean is over the tokens of the answer, including its
end-of-turn token.

Nothing is sampled: every log-probability is that of a given token after those before it, and the unsteered ones are
computed once. So a measurement repeats exactly, and two Steerings are compared text by text.

Strengths are the rungs of a ladder, each `STEP` times the one before.

Limitations: of texts longer than `max_tokens` the rest is not read.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dsas.errors import OptionError, TextsError
from dsas.evaluation.likelihood import Row, log_probabilities
from dsas.files.json_values import JsonObject
from dsas.model.examples import Given, check_texts
from dsas.model.foreign import Model, Tokenizer
from dsas.model.rendering import Rendered, read_through
from dsas.model.tokenizing import pad_token

DAMAGE = 0.02  # nats per token
STEP = 1.5  # from rung to rung of the ladder of strengths
MARGIN = 2.0  # the ladder extends to this many times the stated damage, and down to the stated damage over this
LEAST_STRENGTH, MAX_STRENGTH = 1e-6, 64.0


class Losses(NamedTuple):
    """What each text loses at one strength, in nats per token, in the order given; control by kind."""

    source: Float[np.ndarray, " text"]
    control: dict[str, Float[np.ndarray, " _"]]

    @property
    def damage(self) -> float:
        """The mean over kinds of control text of each kind's mean."""
        return float(np.mean([values.mean() for values in self.control.values()]))

    @property
    def finite(self) -> bool:
        """Whether every text has a finite loss."""
        return all(bool(np.isfinite(values).all()) for values in (self.source, *self.control.values()))


@dataclass(frozen=True, eq=False)
class Curve:
    """What was measured of one Steering: the losses at each of its strengths, which are > 0 and ascend."""

    strengths: tuple[float, ...]
    losses: tuple[Losses, ...]

    def __post_init__(self) -> None:
        ascend = all(low < high for low, high in zip((0.0, *self.strengths), self.strengths, strict=False))
        if not self.strengths or not ascend or len(self.strengths) != len(self.losses):
            raise OptionError(f"expected losses at strengths > 0 that ascend, got strengths {self.strengths}")

    @property
    def damage(self) -> list[float]:
        """The damage at each strength."""
        return [one.damage for one in self.losses]

    def rows(self) -> list[JsonObject]:
        """Return a row per strength: the strength, the source's mean loss, each kind's, and the damage."""
        return [
            {
                "strength": strength,
                "source": float(one.source.mean()),
                **{kind: float(values.mean()) for kind, values in one.control.items()},
                "damage": one.damage,
            }
            for strength, one in zip(self.strengths, self.losses, strict=True)
        ]

    def text_rows(self) -> list[JsonObject]:
        """Return a row per strength and text: its group, source or control, its kind, its number, and what it loses."""
        found: list[JsonObject] = []
        for strength, one in zip(self.strengths, self.losses, strict=True):
            groups = [("source", "source", one.source), *(("control", *pair) for pair in one.control.items())]
            found += [
                {"strength": strength, "group": group, "kind": kind, "text": number, "nats": float(nats)}
                for group, kind, values in groups
                for number, nats in enumerate(values)
            ]
        return found


class Yardstick:
    """The texts that selectivity is measured on, with their log-probabilities in the unsteered model.

    texts and tokens are read when it is made; `losses` then takes one forward pass per batch of texts.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        source: Sequence[Given],
        control: Mapping[str, Sequence[Given]],
        max_tokens: int = 50,
        batch_size: int = 16,
    ) -> None:
        """Read the unsteered model. control: texts by kind. max_tokens: length that each text, or answer, is cut to.

        Raises TextsError for no kinds, fewer than 4 texts in a set, or a text with nothing to predict; OptionError for
        max_tokens < 2 or batch_size < 1.
        """
        if max_tokens < 2 or batch_size < 1:
            raise OptionError(f"expected max_tokens >= 2 and batch_size >= 1, got {max_tokens} and {batch_size}")
        if not control:
            raise TextsError("selectivity is measured against control texts: pass control={kind: texts}")
        self._model, self._pad, self._batch_size = model, pad_token(tokenizer), batch_size
        texts = {f"control {kind!r}": list(members) for kind, members in control.items()}
        texts = {name: check_texts(name, members) for name, members in {"source": source, **texts}.items()}
        self._kinds, self._sizes = list(control), [len(members) for members in texts.values()]
        self._rows: list[Row] = []
        for name, members in texts.items():
            rows = read_through(tokenizer, members, max_tokens)
            short = [number for number, row in enumerate(rows) if not any(row.judged)]
            if short:
                raise TextsError(
                    f"{name}: expected texts of at least 2 tokens (the first is not predicted): {short[:10]}"
                )
            self._rows += [_row(one) for one in rows]
        self._unsteered = self._means()

    def losses(self, steered: AbstractContextManager[object]) -> Losses:
        """Return what each text loses inside `steered`."""
        with steered:
            lost = self._unsteered - self._means()
        source, *control = np.split(lost, np.cumsum(self._sizes)[:-1])
        return Losses(source, dict(zip(self._kinds, control, strict=True)))

    def _means(self) -> Float[np.ndarray, " text"]:
        found = log_probabilities(self._model, self._rows, pad=self._pad, batch_size=self._batch_size)
        return np.array([logs.double().mean().item() for logs in found])


def measured_curve(
    losses: Callable[[float], Losses], *, damage: float = DAMAGE, start: float = 0.1, max_strength: float = MAX_STRENGTH
) -> Curve:
    """Return the curve around the stated damage, from half of it to twice it, or up to `max_strength`.

    losses: at a strength, such as `lambda strength: yardstick.losses(steering.apply(model, strength, record=False))`.
    start: the strength to begin with. Raises OptionError as `ladder` does.
    """
    climb = ladder(damage=damage, start=start, max_strength=max_strength)
    try:
        asked = next(climb)
        while True:
            asked = climb.send([losses(strength) for strength in asked])
    except StopIteration as ended:
        return ended.value


def ladder(
    *, damage: float = DAMAGE, start: float = 0.1, max_strength: float = MAX_STRENGTH
) -> Generator[list[float], list[Losses], Curve]:
    """Ask for the strengths that a curve around the stated damage needs, and return that curve.

    Yields strengths, is sent the losses at them, in their order, and continues from there; so the curves of several
    Steerings can be measured side by side. Strengths at which the model broke down (losses that are not finite) count
    as too large and are not on the curve.
    Raises OptionError for numbers that are not above 0, and when the model broke down at every strength.
    """
    if not (0 < start <= max_strength < math.inf and 0 < damage < math.inf):
        raise OptionError(f"expected 0 < start <= max_strength and damage > 0, got {start}, {max_strength}, {damage}")
    found: dict[int, Losses] = {}

    def ask(rungs: Iterable[int]) -> Generator[list[float], list[Losses], None]:
        missing = [rung for rung in rungs if rung not in found]
        if missing:
            found.update(zip(missing, (yield [_strength(start, rung) for rung in missing]), strict=True))

    def done(rung: int) -> float:
        much = found[rung].damage
        return much if math.isfinite(much) else math.inf

    def steps(much: float) -> int:
        """Return how many rungs are missing to the stated damage if it grows with the square of the strength."""
        known = 0 < much < math.inf
        wanted = math.log(damage / much) / (2 * math.log(STEP)) if known else 4.0
        return min(4, max(1, math.floor(abs(wanted))))

    last = math.floor(math.log(max_strength / start) / math.log(STEP) + 1e-9)
    high = low = 0
    yield from ask([0])
    while done(high) < MARGIN * damage and high < last:
        high = min(last, high + steps(done(high)))
        yield from ask([high])
    while done(low) > damage / MARGIN and _strength(start, low - 1) >= LEAST_STRENGTH:
        low -= steps(done(low))
        yield from ask([low])
    enough = [rung for rung in found if done(rung) >= MARGIN * damage]
    little = [rung for rung in found if done(rung) <= damage / MARGIN and rung < min(enough, default=last + 1)]
    yield from ask(range(max(little, default=low), min(enough, default=max(found)) + 1))
    rungs = [rung for rung in sorted(found) if found[rung].finite]
    if not rungs:
        raise OptionError(f"the steered model's losses are not finite at any strength down to {_strength(start, low)}")
    return Curve(tuple(_strength(start, rung) for rung in rungs), tuple(found[rung] for rung in rungs))


def _row(one: Rendered) -> Row:
    """Return a row cut after its last judged token."""
    places = [place for place, judged in enumerate(one.judged) if judged]
    return Row(one.cut(places[-1] + 1).ids, places[0], one.judged[places[0] : places[-1] + 1], one.prompt)


def _strength(start: float, rung: int) -> float:
    return float(f"{start * STEP**rung:.6g}")
