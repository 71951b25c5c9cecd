"""Claim: a strength tuned on few texts breaks its budget on others half the time, unless `sure` is set.

Fits the default on people-labelled insults, measures what each of many control and general texts loses at a row of
strengths, and then draws, again and again, `--tune` texts to choose the largest strength on, for each `sure` of
`dsas.Budget`, and looks at what all other texts lose there. Nothing is generated; measurements are kept and resumed.

    python benchmarks/budget_kept.py [--model smollm2] [--read 200] [--tune 30] [--draws 400]
"""

import argparse
from pathlib import Path

import numpy as np
from behaviours import texts_of

import dsas
from dsas.calibration.budget import Budget
from dsas.demo.models import real_model
from dsas.evaluation.intervals import draw_counts
from dsas.files.results import Results
from dsas.model.loading import load_model

MOST = 0.02  # nats per token
STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0)
SURE = (0.0, 0.8, 0.9, 0.95)


def losses(name: str, read: int) -> dict[str, np.ndarray]:
    """Return, by kind of text, what each loses (text, strength, 2): nats steered less unsteered, and tokens."""
    fit, others = texts_of("insults", read)
    loaded = load_model(real_model(name), device="cpu", precision="float32")
    steering = dsas.fit(*loaded, source=fit.source, control=[*fit.control, *fit.general["web"]])
    kept, budget, found = Results(Path("out/budget_kept")), Budget("loss", MOST), {}
    for kind, texts in {"control": others.control, **others.general}.items():
        every = []
        for strength in (0.0, *STRENGTHS):
            depends = [steering.digest(), name, strength, texts]
            applied = steering.apply(loaded.model, strength, record=False)
            every.append(kept.remember("nats", depends, lambda a=applied, t=texts: budget.values(*loaded, t, a)))
            print(f"{kind} {strength:g}", flush=True)
        nats, tokens = np.moveaxis(np.array(every), -1, 0)  # (strength, text)
        found[kind] = np.stack([nats[1:] - nats[:1], tokens[1:]], axis=-1).swapaxes(0, 1)
    return found


def chosen(tune: np.ndarray, sure: float, seed: int) -> int | None:
    """Return the place of the largest strength of the first that keep the budget on (text, strength, 2); None: none."""
    counts = np.ones((1, len(tune))) if sure == 0 else draw_counts(len(tune), resamples=500, seed=seed)
    damage = (counts @ tune[..., 0]) / (counts @ tune[..., 1])
    kept = np.quantile(damage, sure, axis=0, method="inverted_cdf") <= MOST if sure else damage[0] <= MOST
    return None if not kept[0] else int(np.argmin(kept)) - 1 if not kept.all() else len(kept) - 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--read", type=int, default=200)
    parser.add_argument("--tune", type=int, default=30)
    parser.add_argument("--draws", type=int, default=400)
    arguments = parser.parse_args()
    print("| tuned on | sure | budget kept on the others % | strength, median | their loss / allowed, median |")
    print("|---|---|---|---|---|")
    for kind, lost in losses(arguments.model, arguments.read).items():
        for sure in SURE:
            kept, strengths, spent = [], [], []
            for draw in range(arguments.draws):
                order = np.random.default_rng(draw).permutation(len(lost))
                tune, rest = lost[order[: arguments.tune]], lost[order[arguments.tune :]]
                place = chosen(tune, sure, draw)
                if place is None:
                    kept.append(True)  # nothing is steered
                    continue
                damage = rest[:, place, 0].sum() / rest[:, place, 1].sum()
                kept.append(damage <= MOST)
                strengths.append(STRENGTHS[place])
                spent.append(damage / MOST)
            middle = f"{np.median(strengths):g} | {np.median(spent):.2f}" if strengths else "- | -"
            print(f"| {kind} | {sure:g} | {100 * np.mean(kept):.0f} | {middle} |")


if __name__ == "__main__":
    main()
