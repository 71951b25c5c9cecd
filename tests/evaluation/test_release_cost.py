from typing import Any

import pytest

from dsas.evaluation import release_cost
from dsas.evaluation.release_cost import Asked, BatchTimes, batch_times, release_minutes

ASKED = {"everyday": Asked(2, 400, 1600), "json": Asked(1, 100, 640)}
PLAIN, STEERED = BatchTimes(200, 2.0, 0.5), BatchTimes(200, 4.0, 1.0)


def test_a_batch_is_timed_after_its_first_draw_and_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, drawn = [0.0], []

    def draw(new: int) -> None:
        clock[0] += (2.0 + 0.5 * (new - 1)) if drawn else 100.0
        drawn.append(new)

    monkeypatch.setattr(release_cost.time, "perf_counter", lambda: clock[0])
    assert batch_times(draw, 200) == PLAIN


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("json", (1 + 1.5) + (2 + 3)),  # half the tokens of the timed prompts, three tokens after the first
        ("over-refusal", (4 + 3) + (8 + 6) + 2 * 20),  # two batches; 2000 tokens are read twice
        ("kl", (4 + 3) + 2 * 20),  # of the unsteered answers alone
    ],
)
def test_a_measure_takes_its_draws_and_its_readings(name: str, seconds: float) -> None:
    found = release_minutes({name: 0.1}, ASKED, {False: PLAIN, True: STEERED}, new_tokens=4)
    assert found.alone == pytest.approx({name: seconds / 60})
    assert found.together == pytest.approx(seconds / 60)


def test_together_each_answer_is_drawn_once() -> None:
    limits: dict[str, Any] = dict.fromkeys(("over-refusal", "repetition", "kl"), 0.1)
    found = release_minutes(limits, ASKED, {False: PLAIN, True: STEERED}, new_tokens=4)
    assert found.together == pytest.approx((7 + 14 + 40 + 40) / 60)
    assert sum(found.alone.values()) == pytest.approx((61 + 21 + 47) / 60)
