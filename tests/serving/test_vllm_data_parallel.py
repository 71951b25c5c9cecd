"""With vLLM: a server of two engines steers, tells and loads on whichever of them a request runs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engines import ASKS, NEW_TOKENS, PROMPTS, Ask, Reference, write_folders
from servers import Server, asked, operate, serving

pytestmark = pytest.mark.vllm


def told(server: Server, prompt: str, ask: Ask, named: Ask) -> tuple[list[int], dict[str, Any]]:
    """Return the tokens of an answer and its report."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    extra = {**(named.extra_args() or {}), "dsas_report": True}
    status, answer = asked(server, "/v1/completions", {**body, "return_token_ids": True, "vllm_xargs": extra})
    assert status == 200, answer
    return answer["choices"][0]["token_ids"], answer["kv_transfer_params"]["dsas_report"]


def test_requests_are_steered_and_told_of_by_whichever_engine_runs_them_and_both_load_what_the_operator_loads(
    tmp_path: Path,
) -> None:
    root = write_folders(tmp_path)
    reference, later = Reference(root), Ask(("later",), (1.0,))
    asks = [(ask, ask) for ask in ASKS[1:6]] + [(later, Ask(("extra",), (1.0,)))]
    work = [(prompt, *pair) for pair in asks for prompt in PROMPTS[2:]] * 2
    wanted = [(reference.generate(prompt, ask).tokens, reference.applied(prompt, ask)) for prompt, ask, _ in work]
    options = ("--together", "2", "--spare", "1", "--reports", "--data-parallel-size", "2")
    with serving(root, ("detox", "topic", "line"), *options) as server:
        status, answer = operate(server, "POST", body={"name": "extra", "folder": str(root / "later")})
        assert status == 200, answer
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda one: told(server, *one), work))
    for (prompt, _, _), (tokens, report), (right, means) in zip(work, found, wanted, strict=True):
        assert tokens == right, prompt
        assert report["tokens"] > 0  # of one engine; the other knows nothing of it
        assert list(report["mean_strength"].values()) == pytest.approx(list(means.values()), abs=1e-5)
