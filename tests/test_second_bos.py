"""A second BOS never appears: verbs that read examples, watched at the model, on conversations and rendered texts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from makers import templated

import dsas
from dsas.evaluation.firing import fires_on
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.evaluation.perplexity import perplexity
from dsas.explaining.explanation import explain
from dsas.testing import tiny_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<s>", "<|user|>", "<|assistant|>", "<|system|>", "</s>")
QUIET = dsas.Running(progress=False)
pytestmark = pytest.mark.filterwarnings("ignore:.*texts look as if", "ignore:.*budget", "ignore:no step had")


def talk(word: str, number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"what {number}"}, {"role": "assistant", "content": f"{word} {number}"}]


def whole(tokenizer: Any, word: str, number: int) -> str:
    return tokenizer.apply_chat_template(talk(word, number), tokenize=False)


def completion(tokenizer: Any, word: str, number: int) -> dict[str, str]:
    asked, said = talk(word, number)
    prompt = tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
    return {"prompt": prompt, "completion": said["content"]}


KINDS: dict[str, Callable[[Any, str, int], Any]] = {
    "conversations": lambda _, word, number: talk(word, number),
    "rendered": whole,
    "rendered, behind a line break": lambda *given: f"\n{whole(*given)}",
    "completions of rendered prompts": completion,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adds_bos", [True, False])
def test_every_row_that_a_model_reads_has_one_bos(kind: str, adds_bos: bool) -> None:
    tokenizer = templated(TEMPLATE, specials=SPECIALS, bos="<s>", adds_bos=adds_bos)
    model: Any = tiny_model(layers=2, vocab_size=300)
    rows: list[list[int]] = []

    def watch(_module: Any, given: Any, named: Any) -> None:
        rows.extend(named.get("input_ids", given[0] if given else torch.zeros(0, 0)).tolist())

    model.register_forward_pre_hook(watch, with_kwargs=True)
    words = {"source": "bad", "control": "ok", "target": "good"}
    sets = {name: [KINDS[kind](tokenizer, word, number) for number in range(8)] for name, word in words.items()}
    loaded = (model, tokenizer)

    def one_each(verb: str) -> None:
        counts = {row.count(tokenizer.bos_token_id) for row in rows if len(row) > 1}  # one alone is generated
        assert (verb, counts) == (verb, {1})
        rows.clear()

    steering = dsas.fit(*loaded, **sets, sites="residual", selection="all", progress=False)
    one_each("fit")
    dsas.train(*loaded, **sets, objective="preference", sites="residual", steps=1, running=QUIET)
    one_each("train")
    budgets = [dsas.Budget("kl", 9.0), dsas.Budget("loss", 9.0)]
    tuned = {"tune": sets["control"], "held_out": sets["target"]}
    dsas.calibrate(*loaded, steering, **tuned, budget=budgets, limit=0.01, progress=False)
    one_each("calibrate")
    fires_on(*loaded, steering, {"bad": sets["source"], "ok": sets["control"]}, progress=False)
    one_each("fires-on")
    perplexity(*loaded, sets["control"])
    one_each("perplexity")
    explain(*loaded, steering, sets["source"][:2])
    one_each("explain")
    steering.port(*loaded, source=sets["source"], control=sets["control"])
    one_each("port")
    if isinstance(sets["source"][0], str):
        sample_continuations(*loaded, sets["source"], seeds=(0,), sampling=Sampling(new_tokens=2))
        one_each("generate")
