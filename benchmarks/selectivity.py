"""Claim: the regulator decides what steering costs: at equal damage to clean text, gates differ many times in effect.

CAA with the gates of `gates.py`, fitted on 130 toxic and 130 control texts: comments that people labelled (see
`comments.py`), the control clean comments alone or in equal parts with web sentences; the target is always the clean
comments. Read on others: by how many nats per token toxic comments become less probable at the strength where clean
comments, Wikipedia and web sentences lose the stated damage on average (`dsas.evaluation.selectivity`), with 95 %
intervals over texts, by kind of control text, and as a ratio to the constant regulator, paired by text.
Nothing is sampled. Interrupted, it resumes where it was.

    python benchmarks/selectivity.py [--model smollm2|gemma3] [--only NAME ...] [--damage 0.02 ...] [--read 100]
        [--out out/selectivity]
"""

import argparse
import hashlib
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comments import labelled_comments
from gates import GATES, Material, Tokens

import dsas
from dsas.demo.data import openwebtext_sentences, split, wikipedia_sentences
from dsas.demo.models import real_model
from dsas.evaluation.intervals import Interval
from dsas.evaluation.loss_curve import Curve, Losses, Yardstick, measured_curve
from dsas.evaluation.selectivity import selectivity
from dsas.files.results import Results
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model

FIT, MAX_TOKENS = 130, 40


def texts_of(read: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return texts to fit on and others to read, by set; larger `read` only adds to what is read."""
    comments = labelled_comments()
    pools = {"toxic": comments.toxic, "clean": comments.clean}
    pools |= {"web": openwebtext_sentences(), "Wikipedia": wikipedia_sentences()}
    fit, others = {}, {}
    for name, pool in pools.items():
        fit[name], rest = split(pool, (FIT, min(len(pool) - FIT, 500)))
        others[name] = rest[:read]
    return fit, others


def marks_of(steering: dsas.Steering) -> str:
    """Return what tells this Steering from others, with regulators that no registry knows."""
    digest = hashlib.sha256()
    for rule in steering.rules:
        plain = {k: v for k, v in rule.regulator.arguments().items() if not isinstance(v, torch.Tensor)}
        digest.update(f"{rule.site} {rule.weight} {type(rule.regulator).__name__} {plain}".encode())
        for part in (rule.transform, rule.regulator):
            for _, value in sorted(part.state_dict().items()):
                digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def remembered(results: Results, yardstick: Yardstick, steering: dsas.Steering, loaded: LoadedModel, depends: Any):
    """Return what gives the losses at a strength, measured or remembered."""
    marks = marks_of(steering)

    def losses(strength: float) -> Losses:
        def measure() -> Any:
            begun = time.monotonic()
            found = yardstick.losses(steering.apply(loaded.model, strength, record=False))
            print(f"  {strength:.4g}: damage {found.damage:.4f}, source {found.source.mean():.4f},"
                  f" {time.monotonic() - begun:.0f} s", flush=True)  # fmt: skip
            return [found.source.tolist(), {kind: values.tolist() for kind, values in found.control.items()}]

        source, control = results.remember("losses", [*depends, marks, strength], measure)
        return Losses(np.array(source), {kind: np.array(values) for kind, values in control.items()})

    return losses


def said(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def shown(name: str, steering: dsas.Steering, curve: Curve, constant: Curve, damage: float) -> str:
    """Return a row as a line of Markdown."""
    found = selectivity(curve, damage=damage, against=constant)
    steered = sum(rule.weight > 0 for rule in steering.rules)
    losses = ", ".join(f"{one.loss.mean:.3f}" for one in found.kinds.values())
    alone = ", ".join("-" if one.nats is None else f"{one.nats.mean:.3f}" for one in found.kinds.values())
    ratio = "-" if found.ratio is None else f"{found.ratio.mean:.2f} [{found.ratio.low:.2f}, {found.ratio.high:.2f}]"
    strength = "not reached" if found.strength is None else f"{found.strength.mean:.3g}"
    cells = [name, f"{steered}", f"{damage}", strength, said(found.nats), ratio, losses, alone]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", nargs="*", default=list(GATES), choices=list(GATES))
    parser.add_argument("--damage", type=float, nargs="*", default=[0.02])
    parser.add_argument("--read", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("out/selectivity"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = arguments.out / arguments.model
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(str(real_model(arguments.model)), precision="float32")
    fit, others = texts_of(arguments.read)
    sites = dsas.find_sites(loaded.model)
    tokens = {name: Tokens.read(loaded, fit[name], sites, max_tokens=MAX_TOKENS) for name in ("toxic", "clean", "web")}
    material = Material(loaded, fit, tokens, sites, folder)
    control = {kind: others[kind] for kind in ("clean", "Wikipedia", "web")}
    yardstick = Yardstick(*loaded, source=others["toxic"], control=control, max_tokens=MAX_TOKENS)
    results = Results(folder / "measured")
    depends = [fingerprint(loaded.model), "float32", others["toxic"], control, MAX_TOKENS]
    counts = {name: len(members) for name, members in others.items()}
    print(json.dumps({"fitted on": {name: len(members) for name, members in fit.items()}, "read": counts}), flush=True)
    print("| gate | sites | damage | strength | source nats | over constant | clean, Wikipedia, web lose"
          " | source nats by kind alone |", flush=True)  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    constant: dict[float, Curve] = {}
    for name in dict.fromkeys([next(iter(GATES)), *arguments.only]):
        steering = GATES[name](material)
        losses = remembered(results, yardstick, steering, loaded, depends)
        for damage in arguments.damage:
            start = 0.04 if not constant else 0.2025  # a rung of the same ladder, nearer to what gates need
            curve = measured_curve(losses, damage=damage, start=start)
            constant.setdefault(damage, curve)
            print(shown(name, steering, curve, constant[damage], damage), flush=True)


if __name__ == "__main__":
    main()
