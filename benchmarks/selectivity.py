"""Claim: the regulator decides what steering costs: at equal damage to clean text, they differ many times in effect.

CAA with each regulator at the residual stream, fitted on 130 texts of a behaviour (see `behaviours.py`) and 130 control
texts (of the same kind, or half of them web sentences, or half of them drawn from the model itself); the target is
always the control of the same kind. Read on others: by how many nats per token texts with the behaviour become less
probable at the strength where control texts (of the same kind, Wikipedia, web) lose the stated damage on average
(`dsas.evaluation.selectivity`), with 95 % intervals over texts, by kind of control text, and as a ratio to the constant
regulator, paired by text. Nothing is sampled. If interrupted, it resumes.

    python benchmarks/selectivity.py [--model smollm2|gemma3] [--behaviour NAME ...] [--only NAME ...]
        [--damage 0.02 ...] [--read 100] [--out out/selectivity]
"""

import argparse
import hashlib
import json
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from across_sites import AcrossFit
from behaviours import BEHAVIOURS, Texts, texts_of

import dsas
from dsas.demo.models import real_model
from dsas.evaluation.intervals import Interval
from dsas.evaluation.loss_curve import Curve, Losses, Yardstick, measured_curve
from dsas.evaluation.selectivity import selectivity
from dsas.files.results import Results
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model

MAX_TOKENS = 40
OTHER_SITES = r"re:model\.layers\.\d*[02468]"


class Row(NamedTuple):
    """One row of the table: what the control set is mixed with ("", "web", "own"), and the options of the fit.

    by_token: every token of a text, and not the mean of them, is what regulators learn from.
    """

    mixed: str = ""
    options: dict[str, Any] = {}  # noqa: RUF012
    by_token: bool = False


def evidence(**options: Any) -> dict[str, Any]:
    """Return an evidence regulator with these options, as `fit` takes it."""
    return {"regulator": partial(dsas.Evidence.fit, **options)}


def logistic(components: int) -> dict[str, Any]:
    """Return a logistic regulator on so many components, as `fit` takes it."""
    return {"regulator": partial(dsas.Logistic.fit, components=components)}


ROWS = {
    "none": Row(options={"regulator": "constant"}),
    "logistic (the paper's)": Row(options={"regulator": "logistic"}),
    "evidence (the default)": Row(),
    "probe": Row(options={"regulator": "probe"}),
    "evidence, half web": Row("web"),
    "evidence, half drawn from the model": Row("own"),
    "logistic, half web": Row("web", {"regulator": "logistic"}),
    "logistic, 50 components": Row(options=logistic(50)),
    "evidence, every site": Row(options={"selection": "all"}),
    "evidence, read clean": Row(options={"regulator": partial(dsas.Clean.fit, of=dsas.Evidence.fit)}),
    "evidence, every other site": Row(options={"sites": OTHER_SITES}),
    "evidence, sinks in the means": Row(options={"reading": dsas.Reading(skip_sinks=False)}),
    "evidence, fitted on tokens": Row(options={**evidence(), "selection": "all"}, by_token=True),
    "evidence, averaged over sites": Row(options={"regulator": AcrossFit}),
    "evidence, no prior": Row(options=evidence(prior=0.0)),
    "evidence, memory 0.98": Row(options=evidence(memory=0.98)),
    "evidence, memory 0.95": Row(options=evidence(memory=0.95)),
    "evidence, memory 0.9": Row(options=evidence(memory=0.9)),
    "evidence, 2 %, sharpness 4": Row(options=evidence(false_positives=0.02, sharpness=4.0)),
    "evidence, 5 %": Row(options=evidence(false_positives=0.05)),
    "evidence, 10 %": Row(options=evidence(false_positives=0.1)),
    "evidence, 15 %": Row(options=evidence(false_positives=0.15)),
}


def fitted(row: Row, texts: Texts, loaded: LoadedModel, folder: Path) -> dsas.Steering:
    """Return the Steering of a row."""
    control = texts.control
    if row.mixed:
        half = len(control) // 2
        web = texts.general["web"]
        other = web if row.mixed == "web" else dsas.general_texts(*loaded, len(control) - half, progress=False)
        control = control[:half] + other[: len(control) - half]
    source = [dsas.Example(text, [(0, len(text))]) for text in texts.source] if row.by_token else texts.source
    sets = {"source": source, "control": control, "target": texts.control}
    options = dict(row.options)
    if options.get("regulator") is AcrossFit:
        options["regulator"] = AcrossFit()  # it remembers the sites of one fit
    return dsas.fit(*loaded, **sets, checkpoint=folder / "collected", progress=False, **options)


def marks_of(steering: dsas.Steering) -> str:
    """Return what identifies this Steering, also where no registry knows its regulators."""
    digest = hashlib.sha256()
    for rule in steering.rules:
        plain = {k: v for k, v in rule.regulator.arguments().items() if not isinstance(v, torch.Tensor)}
        digest.update(f"{rule.site} {rule.weight} {type(rule.regulator).__name__} {plain}".encode())
        for part in (rule.transform, rule.regulator):
            for _, value in sorted(part.state_dict().items()):
                digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def remembered(results: Results, yardstick: Yardstick, steering: dsas.Steering, loaded: LoadedModel, depends: Any):
    """Return a function that gives the losses at a strength, measured or remembered."""
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


def measure(model: str, behaviour: str, arguments: argparse.Namespace, names: list[str]) -> None:
    """Print the table of one behaviour on one model."""
    folder = arguments.out / model / behaviour
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(str(real_model(model)), precision="float32")
    fit, others = texts_of(behaviour, arguments.read)
    control = {"same": others.control, **others.general}
    yardstick = Yardstick(*loaded, source=others.source, control=control, max_tokens=MAX_TOKENS)
    results = Results(folder / "measured")
    depends = [fingerprint(loaded.model), "float32", others.source, control, MAX_TOKENS]
    counts = {"source": len(others.source), **{kind: len(members) for kind, members in control.items()}}
    print(
        json.dumps({"model": model, "behaviour": behaviour, "fitted on": len(fit.source), "read": counts}), flush=True
    )
    print("| regulator | sites | damage | strength | source nats | over none | same, Wikipedia, web lose"
          " | source nats by kind alone |", flush=True)  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    constant: dict[float, Curve] = {}
    for name in dict.fromkeys(["none", *names]):
        steering = fitted(ROWS[name], fit, loaded, folder)
        losses = remembered(results, yardstick, steering, loaded, depends)
        for damage in arguments.damage:
            start = 0.04 if not constant else 0.2025  # a rung of the same ladder, nearer to what regulators need
            curve = measured_curve(losses, damage=damage, start=start)
            constant.setdefault(damage, curve)
            print(shown(name, steering, curve, constant[damage], damage), flush=True)
            print("   ", steering.settings.get("held_out_tokens"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--behaviour", nargs="*", default=list(BEHAVIOURS), choices=list(BEHAVIOURS))
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--damage", type=float, nargs="*", default=[0.02])
    parser.add_argument("--read", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("out/selectivity"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for behaviour in arguments.behaviour:
        measure(arguments.model, behaviour, arguments, arguments.only)


if __name__ == "__main__":
    main()
