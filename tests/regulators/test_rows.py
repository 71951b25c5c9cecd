"""Regulators that decide: in a mixed batch each row gets its own decision, wherever it stands and however padded."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import dsas
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH
from dsas.testing.passes import padded

DECIDERS: dict[str, Any] = {
    "cast": "cast",
    "mera": "mera",
    "halfspace": partial(dsas.HalfSpace.fit, boundary="midpoint"),
}


def planted() -> Any:
    """Return a model whose capitals share a direction in the embeddings, which the small letters lack."""
    model: Any = tiny_model()
    capitals = torch.tensor(tiny_tokenizer()("ABCDEFGHIJ")["input_ids"])
    model.model.embed_tokens.weight.data[capitals] += 4.0 * torch.nn.functional.normalize(torch.randn(WIDTH), dim=0)
    return model


def texts(letters: str, seed: int) -> list[str]:
    order = torch.Generator().manual_seed(seed)
    return ["".join(letters[int(i)] for i in torch.randint(10, (12,), generator=order)) for _ in range(16)]


@pytest.mark.parametrize("name", DECIDERS)
def test_a_row_that_shows_the_behaviour_is_steered_and_the_neutral_one_beside_it_is_not(name: str) -> None:
    model, tokenizer = planted(), tiny_tokenizer()
    steering = dsas.fit(
        model, tokenizer, source=texts("ABCDEFGHIJ", 0), control=texts("abcdefghij", 1),
        target=texts("abcdefghij", 2), regulator=DECIDERS[name], sites="model.embed_tokens", progress=False,
    )  # fmt: skip
    assert steering.rules[0].accuracy == 1.0
    shown, neutral = (torch.tensor(tokenizer(text)["input_ids"]) for text in ("ABCDEFGH", "fghij"))

    def strengths(rows: list[Tensor], side: str) -> list[Tensor]:
        inputs = padded(rows, side, 65)
        with steering.apply(model) as applied, torch.no_grad():
            model(**inputs)
        trace = applied.trace()
        return [trace.strengths[0, number][trace.real[number]][1:] for number in range(len(rows))]

    (fires,), (rests,) = strengths([shown], "right"), strengths([neutral], "right")
    assert float(fires.min()) > 0.2
    assert torch.equal(rests, torch.zeros(4))
    for side in ("left", "right"):
        for rows in ([shown, neutral], [neutral, shown], [shown, neutral, shown, neutral]):
            for got, ids in zip(strengths(rows, side), rows, strict=True):
                torch.testing.assert_close(got, fires if ids is shown else rests)
