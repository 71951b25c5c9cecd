"""Sets: the texts that a strength is searched on, and the others that check it, each by kind of text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dsas.calibration.budget import Budget
from dsas.errors import OptionError, TextsError, shown
from dsas.model.conversation import as_json
from dsas.model.examples import MINIMUM_TEXTS, check_texts, members_of

Given = Mapping[str, Sequence[Any]] | Sequence[Any]
Texts = Mapping[str, list[Any]]


def checked_sets(tune: Given, held_out: Given, budgets: tuple[Budget, ...]) -> tuple[Texts, Texts]:
    """Return both sets by kind of text. Raises TextsError for texts in both, or too few, OptionError for a budget."""
    if not budgets:
        raise OptionError("expected at least one budget, got none")
    if odd := [one for one in budgets if not isinstance(one, Budget)]:
        raise OptionError(f"expected a dsas.Budget, such as dsas.Budget('perplexity', 1.02), got {shown(odd[0])}")
    sets = []
    for name, given in (("tune", tune), ("held_out", held_out)):
        by_kind = given if isinstance(given, Mapping) else {"texts": given}
        for budget in budgets:
            budget.check(by_kind)
        sets.append({kind: _checked(f"{name}[{kind!r}]", texts) for kind, texts in by_kind.items()})
        if not sets[-1]:
            raise TextsError(f"{name} must hold at least one kind of text, got none")
    seen = {json.dumps(as_json(text)) for texts in sets[0].values() for text in texts}
    shared = [text for texts in sets[1].values() for text in texts if json.dumps(as_json(text)) in seen]
    if shared:
        raise TextsError(
            f"{len(shared)} held-out texts are tuning texts, too, so they would check nothing; the first: "
            f"{shared[0]!r:.60}"
        )
    return sets[0], sets[1]


def _checked(name: str, given: Sequence[Any]) -> list[Any]:
    texts = members_of(name, given)
    if all(isinstance(text, str) for text in texts):
        return check_texts(name, texts)
    if len(texts) < MINIMUM_TEXTS:
        raise TextsError(f"{name} must hold at least {MINIMUM_TEXTS} texts, got {len(texts)}")
    return texts
