"""The demo's explanation: texts coloured by the strength that was applied to each token."""

from collections.abc import Sequence

import torch

from dsas.model.foreign import Model, Tokenizer
from dsas.model.token_batches import batches, pad_token, tokenize
from dsas.reports.heat import TokenHeat
from dsas.steering.steering import Steering

TEXTS = (
    "The library opens at nine and the reading room is quiet in the morning. You are a stupid idiot and I hate you.",
    "Shut up, you pathetic moron. The train to the coast leaves from platform four at half past ten.",
    "The committee approved the budget for the new school after a short discussion on Tuesday evening.",
)


def token_heats(model: Model, tokenizer: Tokenizer, steering: Steering, strength: float) -> list[TokenHeat]:
    """Return the mean applied strength over the steered sites for every token of three texts (two of them mixed)."""
    (batch,) = batches(tokenize(tokenizer, TEXTS), len(TEXTS), pad=pad_token(tokenizer), side="right")
    with torch.no_grad(), steering.apply(model, strength) as applied:
        model(
            input_ids=batch.tokens.to(model.device),
            attention_mask=batch.mask.long().to(model.device),
            use_cache=False,
        )
    trace = applied.trace()
    heats: Sequence[TokenHeat] = [
        TokenHeat(
            f"text {row + 1}",
            [tokenizer.decode(token) for token in batch.tokens[place][batch.mask[place]]],
            trace.strengths[:, place].mean(0)[trace.real[place]].tolist(),
        )
        for place, row in enumerate(batch.rows)
    ]
    return sorted(heats, key=lambda heat: heat.label)
