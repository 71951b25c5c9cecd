"""Claim: a vector of repeng, which is added to every token, costs less for the same effect with a regulator around it.

SmolLM2-135M-Instruct, asked to talk like a pirate (`drafted.py`). The vector is made by repeng 0.4 itself
(`ControlVector.train`, PCA of differences) from the drafted answers, wanted ones as positive and unwanted ones as
negative, each after the plain question, and goes through a GGUF file. It is adopted unchanged ("constant"), and with
the default regulator fitted on the same answers against neutral ones. At each stated damage the strength is the largest
at which, on 30 other questions, neither neutral answers nor wanted ones after the request lose more nats per token.

Then 100 more questions are asked in two wordings and as many seeds as `drafted.py` has: the share of answers that show
the behaviour, their nats per token to the unsteered model after the plain question, and what neutral answers lose.
95 % intervals by question. If interrupted, it resumes.

    pip install repeng==0.4.0
    python benchmarks/adopted.py [--damage 0.02 0.1] [--out out/drafted]
"""

import argparse
import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drafted import BEHAVIOURS, SEEDS, TEST, TUNE, Lab, answer_losses, moved, said, tuning_sets

import dsas
from dsas.drafting.prompts import prompts_for
from dsas.evaluation.intervals import bootstrap, bootstrap_ratio

NAME = "pirate"
REGULATORS = {"as it was published": "constant", "with a regulator": "auto"}


@contextmanager
def numpy_of_then() -> Iterator[None]:
    """Give NumPy the name that repeng 0.4 asks for and NumPy 2 no longer has."""
    np.float_ = np.float64
    try:
        yield
    finally:
        del np.float_


def published(lab: Lab, sets: dict[str, Any]) -> Path:
    """Return the GGUF file of repeng's vector, made the first time."""
    file = lab.out / "repeng.gguf"
    if file.is_file():
        return file
    with numpy_of_then():
        from repeng import ControlVector, DatasetEntry

        told = [[_rendered(lab, one) for one in sets[kind]] for kind in ("target", "source")]
        entries = [DatasetEntry(*pair) for pair in zip(*told, strict=True)]
        tokenizer = copy.deepcopy(lab.loaded.tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
        vector = ControlVector.train(lab.loaded.model, tokenizer, entries, batch_size=16)
        vector.export_gguf(str(file))
    return file


def _rendered(lab: Lab, one: Any) -> str:
    """Return a question and its answer through the chat template, without the end of the turn."""
    (question,), (answer,) = [[turn["content"] for turn in one[half]] for half in ("prompt", "completion")]
    return lab.asked("{question}", [question])[0] + answer


def line(lab: Lab, steering: dsas.Steering | None, strength: float, name: str) -> str:
    """Return a row: what is asked for, and what neutral answers lose."""
    behaviour, shows = BEHAVIOURS[NAME]
    asks = [one.replace("{question}", q) for q in TEST for one in prompts_for(behaviour).unwanted[:2]]
    drawn = [lab.sampled(lab.asked("{question}", asks), seed, steering, strength) for seed in SEEDS]
    shown = np.array([[shows(text) for text in texts] for texts in drawn]).T.reshape(len(TEST), -1)
    plain = lab.asked("{question}", [question for question in TEST for _ in range(2)])
    spoken = [[text, answer] for texts in drawn for text, answer in zip(plain, texts, strict=True) if answer.strip()]
    nats, size = np.array(
        lab.results.remember("read", [lab.marks, spoken], lambda: answer_losses(*lab.loaded, spoken))
    ).sum(0)
    neutral = lab.answers(behaviour, TEST)
    marks = [lab.marks, neutral, neutral, steering.digest() if steering else "", strength]
    steered = (lambda: steering.apply(lab.loaded.model, strength, record=False)) if steering else nullcontext
    lost, kl, tokens = np.array(lab.results.remember("moved", marks, lambda: moved(lab, neutral, neutral, steered))).T
    loss, far = (bootstrap_ratio(values[:, None], tokens[:, None]) for values in (lost, kl))
    ratio = "{:.3f} [{:.3f}, {:.3f}]".format(*np.exp(loss[:3]))
    return f"| {name} | {strength:.3g} | {said(bootstrap(shown))} | {nats / size:.2f} | {ratio} | {said(far)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--damage", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--out", type=Path, default=Path("out/drafted"))
    arguments = parser.parse_args()
    if find_spec("repeng") is None:
        print("nothing was measured: it needs pip install repeng==0.4.0")
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lab = Lab(arguments.out)
    behaviour, _ = BEHAVIOURS[NAME]
    sets = lab.drafted(NAME).sets()
    file = published(lab, sets)
    tune, held_out = (tuning_sets(lab, behaviour, questions) for questions in (TUNE, TEST))
    print(f"{len(sets['source'])} pairs; n = {len(TEST)} questions x 2 wordings x {len(SEEDS)} seeds", flush=True)
    print("| | strength | answers that show it | their nats | neutral: perplexity | neutral: KL, nats |", flush=True)
    print("|---|---|---|---|---|---|")
    print(line(lab, None, 0.0, "unsteered"), flush=True)
    for damage in arguments.damage:
        for name, regulator in REGULATORS.items():
            texts = {} if regulator == "constant" else {"source": sets["source"], "control": sets["control"]}
            steering = dsas.adopt(file, *lab.loaded, **texts, regulator=regulator, progress=False)
            found = dsas.calibrate(
                *lab.loaded, steering, tune=tune, held_out=held_out, checkpoint=lab.out / "calibrated", progress=False,
                budget=dsas.Budget("loss", damage, worst=True, measure=answer_losses),
            )  # fmt: skip
            print(line(lab, steering, found.strength, f"{name}, {damage:g} nats"), flush=True)


if __name__ == "__main__":
    main()
