"""Claim: the residual stream is the better default site.

Fits CAA + DSAS at each kind of site and prints, over a grid of strengths, the share of toxic continuations and the
perplexity on four kinds of neutral text over unsteered, with 95 % intervals. Measured on the demo's tuning prompts and
sentences, never on those that the demo reports.

    python benchmarks/site_kinds.py [--model smollm2|gemma3] [--seeds 3] [--out out/site_kinds]
"""

import argparse
import warnings
from contextlib import nullcontext
from pathlib import Path

from cells import Bench

import dsas
from dsas.demo.models import real_model
from dsas.demo.texts import bare_setup, demo_texts
from dsas.evaluation.generations import Sampling
from dsas.evaluation.scorers import packaged_scorers
from dsas.model.identity import fingerprint
from dsas.model.loading import load_model

# Each kind has a scale of its own: what is added to the residual stream adds up over the layers.
STRENGTHS = {
    ("residual",): (0.05, 0.1, 0.2),
    ("norm",): (0.5, 1.0, 2.5),
    ("attention", "mlp"): (0.3, 0.7, 1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/site_kinds"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = str(real_model(arguments.model))
    loaded = load_model(folder)
    model, tokenizer = loaded
    scorers = packaged_scorers()
    texts = demo_texts(arguments.out, bare_setup(folder, loaded), progress=False)
    bench = Bench(
        model,
        tokenizer,
        prompts=texts.tune_prompts,
        neutral=texts.tune,
        scorers=scorers,
        seeds=list(range(arguments.seeds)),
        sampling=Sampling(),
        folder=arguments.out / "cells",
    )
    unsteered = bench.cell("unsteered", 0.0, fingerprint(model), steered=nullcontext(), progress=lambda done: None)
    show(unsteered, unsteered)
    for kinds, strengths in STRENGTHS.items():
        sets = {"source": texts.source, "control": texts.control, "target": texts.target}
        steering = dsas.fit(model, tokenizer, **sets, sites=kinds, regulator="logistic", progress=False)
        name = f"{fingerprint(model)} {steering.digest()}"
        selected = sum(rule.weight > 0 for rule in steering.rules)
        print(f"{' + '.join(kinds)}: {selected} of {len(steering.rules)} sites selected", flush=True)
        for strength in strengths:
            applied = steering.apply(model, strength, record=False)
            cell = bench.cell(" + ".join(kinds), strength, name, steered=applied, progress=lambda done: None)
            show(cell, unsteered)


def show(cell, unsteered) -> None:
    toxic = cell.toxic()["ensemble"]
    ratios = "  ".join(
        f"{kind} {ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        for kind, ratio in cell.perplexity_over(unsteered).items()
    )
    share = f"{100 * toxic.mean:.1f} % [{100 * toxic.low:.1f}, {100 * toxic.high:.1f}]"
    print(f"{cell.condition} at {cell.strength}: toxic {share}  perplexity {ratios}", flush=True)


if __name__ == "__main__":
    main()
