"""The first look, on a tiny model and made-up texts."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsas.demo import first_look as module
from dsas.demo.first_look import NEW_TOKENS, PROMPT, first_look
from dsas.model.loading import LoadedModel
from dsas.testing import tiny_model, tiny_tokenizer

RUDE = [f"you rude number {number}" for number in range(40)]


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Take every text from lists made up here, and note what is fitted on."""
    fit, noted = module.fit, []
    monkeypatch.setattr(
        module, "toxic_prompts_by_category", lambda: {"insult": RUDE[:20], "threat": ["no"], "profanity": RUDE[10:]}
    )
    monkeypatch.setattr(module, "wikipedia_sentences", lambda: [f"plain sentence {number}" for number in range(80)])

    def noting(*loaded: Any, **options: Any) -> Any:
        noted.append(options)
        return fit(*loaded, **options)

    monkeypatch.setattr(module, "fit", noting)
    return noted


def test_one_prompt_is_continued_in_three_ways_and_tokens_carry_their_strength(sets, tmp_path: Path) -> None:
    loaded: Any = LoadedModel(tiny_model(layers=2), tiny_tokenizer())
    look = first_look(loaded, RUDE[:30], checkpoint=tmp_path)
    everywhere, where_needed = look.steered
    assert {"".join(row.tokens)[: len(PROMPT)] for row in look.steered} == {PROMPT}
    assert everywhere.means() == pytest.approx([module.STRENGTH] * len(everywhere.tokens))
    assert min(where_needed.means()) < module.STRENGTH
    assert everywhere.comparison is not None
    assert len(everywhere.tokens) <= everywhere.comparison.prompt_tokens + NEW_TOKENS
    console = Console(width=200)
    with console.capture() as written:
        console.print(look)
    shown = written.get()
    assert shown.startswith(f"unsteered\n{PROMPT}")
    assert "steered where DSAS finds it needed (strength 0.2)" in shown
    assert "\x1b" not in shown  # no colours where there is no terminal


def test_it_is_fitted_on_no_prompt_but_those_given_each_once_and_on_sentences_for_one_purpose(
    sets, tmp_path: Path
) -> None:
    loaded: Any = LoadedModel(tiny_model(layers=2), tiny_tokenizer())
    first_look(loaded, RUDE[:30], checkpoint=tmp_path)
    for options in sets:
        assert options["source"] == RUDE[:30]
        assert set(options["control"]).isdisjoint(options["target"])
    assert [options["regulator"] for options in sets] == ["constant", "logistic"]
