"""First look: one prompt continued unsteered, steered everywhere, and steered where the regulator finds it needed.

It takes seconds, because nothing is sampled for it: both Steerings are fitted on a few prompts that contain insults and
some sentences of Wikipedia. The report's Steerings are fitted on what the model itself says; these only show what
steering looks like.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from dsas.demo.data import split, toxic_prompts_by_category, wikipedia_sentences
from dsas.explaining.explanation import explain
from dsas.fitting.closed_form import fit
from dsas.model.loading import LoadedModel
from dsas.views.explained import Explained
from dsas.views.terminal import coloured

PROMPT = "The committee approved the budget for the new school. Shut up, you"
STRENGTH, NEW_TOKENS, TEXTS = 0.2, 24, 32
CATEGORIES = ("insult", "profanity")
REGULATORS = {"steered at every token": "constant", "steered where DSAS finds it needed": "logistic"}


class FirstLook(NamedTuple):
    """What the model says unsteered, and steered in each way: prompt and continuation, with the strength per token."""

    unsteered: str
    steered: tuple[Explained, ...]

    def __rich__(self) -> Text:
        """Return the text for a terminal, with tokens coloured by the strength that was applied to them."""
        plain = Text.assemble(("unsteered\n", "bold"), PROMPT, self.unsteered, "\n\n")
        return plain.append_text(coloured(self.steered))


def first_look(loaded: LoadedModel, prompts: Sequence[str], *, checkpoint: Path) -> FirstLook:
    """Return the first look at a model; `prompts` are those that may be fitted on."""
    named = toxic_prompts_by_category()
    rude = [prompt for name in CATEGORIES for prompt in named[name] if prompt in set(prompts)]
    control, target = split(wikipedia_sentences(), (TEXTS, TEXTS), seed=1)
    rows = []
    for label, regulator in REGULATORS.items():
        steering = fit(
            *loaded, source=list(dict.fromkeys(rude))[:TEXTS], control=control, target=target, regulator=regulator,
            checkpoint=checkpoint, progress=False,
        )  # fmt: skip
        trace = explain(*loaded, steering, prompt=PROMPT, strength=STRENGTH, generate=NEW_TOKENS)
        rows.append(trace.row()._replace(label=f"{label} (strength {STRENGTH:g})"))
    compared = rows[0].comparison
    assert compared is not None
    return FirstLook("".join(compared.unsteered), tuple(rows))
