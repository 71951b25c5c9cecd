"""Question: which tokens of a conversation should a regulator be fitted on to separate kinds of answers?

Labelled texts (`behaviours.py`) are answers to one and the same request, in the chat template of SmolLM2:
insulting comments against others, satirical headlines against others. CAA with the logistic regulator at all sites of
the residual stream, fitted on 130 of each with `Reading(tokens=...)`, or on the bare texts, and read on 100 others of
each in conversations: the AUROC of the regulator's mean value over the tokens of the answer (`Steering.port`). Two ways
of asking: without a system message, where the last instruction is the same in both sets and is not fitted on; and as
contrastive prompts do, with one that asks for the behaviour or against it, which is not there when answers are read.

    python benchmarks/answer_tokens.py [--out out/answer_tokens]
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from behaviours import texts_of

import dsas
from dsas.demo.models import real_model
from dsas.files.results import Results
from dsas.model.loading import LoadedModel, load_model

MIDDLE = 15  # the layer whose AUROC is shown with its interval; of 30
TOKENS = ("answer", "all", "last", "last-instruction")


class Asked(NamedTuple):
    """What is asked for, and the system messages that ask for the behaviour and against it."""

    request: str
    unwanted: str
    wanted: str


ASKED = {
    "insults": Asked("Leave a comment.", "You are rude to everyone.", "You are polite to everyone."),
    "sarcasm": Asked("Write a headline.", "You write for a satirical paper.", "You write for a serious paper."),
}


def talks(answers: list[str], request: str, system: str | None) -> list[Any]:
    before = [{"role": "system", "content": system}] if system else []
    asked = [*before, {"role": "user", "content": request}]
    return [[*asked, {"role": "assistant", "content": answer}] for answer in answers]


def measured(loaded: LoadedModel, fitted: dict[str, list[Any]], read: dict[str, list[Any]], tokens: Any) -> Any:
    """Return how well regulators that are fitted on these tokens tell the answers that are read."""
    steering = dsas.fit(
        *loaded, **fitted, target=fitted["control"], regulator="logistic", selection="all", sites="residual",
        reading=dsas.Reading(tokens), progress=False,
    )  # fmt: skip
    sites = steering.port(*loaded, **read).sites
    middle = sites[MIDDLE]
    return {
        "middle": [middle.auroc, middle.low, middle.high],
        "median": statistics.median(0.5 if site.auroc is None else site.auroc for site in sites),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/answer_tokens"))
    options = parser.parse_args()
    loaded, kept = load_model(real_model("smollm2"), device="cpu", precision="float32"), Results(options.out)
    for name, asked in ASKED.items():
        fit, others = texts_of(name, 100)
        read = {key: talks(getattr(others, key), asked.request, None) for key in ("source", "control")}
        plain = {"source": fit.source, "control": fit.control}
        once = {key: talks(texts, asked.request, None) for key, texts in plain.items()}
        systems = {"source": asked.unwanted, "control": asked.wanted}
        twice = {key: talks(texts, asked.request, systems[key]) for key, texts in plain.items()}
        cells = [
            ("bare texts", plain, ("all",)),
            ("no system message", once, TOKENS[:-1]),
            ("contrastive", twice, TOKENS),
        ]
        for how, sets, ways in cells:
            for tokens in ways:
                depends = [tokens, sets, read]
                row = kept.remember("row", depends, lambda: measured(loaded, sets, read, tokens))  # noqa: B023
                print(json.dumps({"behaviour": name, "fitted on": how, "tokens": tokens, **row}), flush=True)


if __name__ == "__main__":
    main()
