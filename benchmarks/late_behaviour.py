"""Claim: a regulator that forgets fires on a behaviour late in a row as it does at the beginning.

CAA with each regulator, fitted as in `selectivity.py`. Each row has a number of tokens of clean sentences (Wikipedia,
web), then a text that shows the behaviour, then clean sentences again; the mean regulator value over sites and tokens
is read from one pass each, at a strength that changes nothing: before the text, on it, on the 20 tokens after it, and
from the 40th after it on. 95 % intervals over rows.

    python benchmarks/late_behaviour.py [--model smollm2|gemma3] [--behaviour NAME ...] [--rows 40]
"""

import argparse
import random
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from behaviours import BEHAVIOURS, Texts, texts_of

import dsas
from dsas.demo.models import real_model
from dsas.evaluation.intervals import bootstrap
from dsas.model.loading import LoadedModel, load_model

CLEAN, TEXT, AFTER = (0, 40, 160), 40, 60
TINY = 1e-6  # a strength at which nothing changes, so that values are read as they would be at first
REGULATORS: dict[str, Any] = {
    "logistic (the paper's)": "logistic",
    "probe": "probe",
    "evidence, memory 1": partial(dsas.Evidence.fit, memory=1.0),
    "evidence (the default)": "auto",
}


def rows_of(texts: Texts, loaded: LoadedModel, clean: int, count: int) -> list[tuple[list[int], int, int]]:
    """Return rows of tokens, and where the text that shows the behaviour begins and ends in each."""
    draw, pool = random.Random(0), [text for kind in texts.general.values() for text in kind]

    def tokens(text: str) -> list[int]:
        return loaded.tokenizer(" " + text, add_special_tokens=False)["input_ids"]

    def sentences(length: int) -> list[int]:
        found: list[int] = []
        while len(found) < length:
            found += tokens(draw.choice(pool))
        return found[:length]

    rows = []
    for text in texts.source[:count]:
        shown = tokens(text)[:TEXT]
        rows.append((sentences(clean) + shown + sentences(AFTER), clean, clean + len(shown)))
    return rows


def read(steering: dsas.Steering, loaded: LoadedModel, rows: list[tuple[list[int], int, int]]) -> np.ndarray:
    """Return (row, place) values: before, on the text, just after it, and later; nan where there is no such token."""
    found = []
    for tokens, begin, end in rows:
        with steering.apply(loaded.model, TINY) as applied, torch.no_grad():
            loaded.model(torch.tensor([tokens]))
        values = applied.trace().strengths[:, 0].double().mean(0).numpy() / TINY
        parts = values[1:begin], values[begin:end], values[end : end + 20], values[end + 40 :]
        found.append([part.mean() if len(part) else np.nan for part in parts])
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--behaviour", nargs="*", default=["insults", "sarcasm", "numbers"], choices=list(BEHAVIOURS))
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out/selectivity"), help="where selectivity.py keeps its fits")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    loaded = load_model(str(real_model(arguments.model)), precision="float32")
    print("| behaviour | regulator | clean tokens before | before | on the text | 20 tokens after | later |")
    print("|---|---|---|---|---|---|---|")
    for behaviour in arguments.behaviour:
        fit, others = texts_of(behaviour, max(arguments.rows, 75))
        kept = arguments.out / arguments.model / behaviour / "collected"
        sets = {"source": fit.source, "control": fit.control, "target": fit.control}
        for name, regulator in REGULATORS.items():
            steering = dsas.fit(*loaded, **sets, regulator=regulator, checkpoint=kept, progress=False)
            for clean in CLEAN:
                values = read(steering, loaded, rows_of(others, loaded, clean, arguments.rows))
                places = [bootstrap(place[:, None]) for place in values.T if not np.isnan(place).all()]
                cells = ["-"] * (4 - len(places)) + [
                    f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in places
                ]
                print(f"| {behaviour} | {name} | {clean} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
