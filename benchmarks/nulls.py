"""Question: how much of the effect of CAA does a random direction of the same size have?

Writes the demo's texts into files and runs `dsas pareto --nulls` on them, as a user would: CAA without a regulator and
with the paper's, and beside each a random direction and the opposite one at the same KL divergence. The prompts are
those of the report that scorers find most toxic by themselves. 95 % intervals over prompts. If interrupted, it resumes.

    python benchmarks/nulls.py [--prompts 60] [--seeds 1] [--texts 30] [--out out/nulls]
"""

import argparse
import contextlib
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from dsas import cli
from dsas.demo.models import real_model
from dsas.demo.texts import Sizes, bare_setup, demo_texts
from dsas.evaluation.intervals import Interval
from dsas.model.loading import load_model
from dsas.reports.estimates import read_sweep
from dsas.sweep.resampling import ENSEMBLE, MEAN, TOXIC

STRENGTHS = (0.02, 0.05, 0.1)  # the nulls are matched at the middle one
KINDS = ("Wikipedia", "web", "news")


def written(folder: Path, name: str, texts: Sequence[str]) -> Path:
    """Write texts into a file, one per line, and return its path."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def arguments_of(asked: argparse.Namespace, name: str) -> list[str]:
    """Write the texts, and return the arguments of the command."""
    folder: Path = asked.out / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    setup = bare_setup(name, load_model(name))
    texts = demo_texts(asked.fitted, setup, sizes=Sizes(harshest_first=True), progress=False)
    options = {"prompts": written(folder, "prompts", texts.prompts[: asked.prompts])}
    options |= {part: written(folder, part, getattr(texts, part)) for part in ("source", "control", "target")}
    given = [argument for part, file in options.items() for argument in (f"--{part}", str(file))]
    for part, kinds in (("tune", texts.tune), ("neutral", texts.report)):
        for kind in KINDS:
            file = written(folder, f"{part}-{kind}", kinds[kind][: asked.texts])
            given += [f"--{part}", f"{kind}={file}"]
    given += [argument for strength in STRENGTHS for argument in ("--strength", f"{strength:g}")]
    return ["pareto", name, *given, "--nulls", "--seeds", str(asked.seeds), "--limit", "3", "--out", str(asked.out)]


def said(one: Interval, scale: float, digits: int) -> str:
    return f"{scale * one.mean:.{digits}f} [{scale * one.low:.{digits}f}, {scale * one.high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--texts", type=int, default=30, help="Neutral texts of each kind, to tune and to report on.")
    parser.add_argument("--out", type=Path, default=Path("out/nulls"))
    parser.add_argument("--fitted", type=Path, default=Path("out/equal_damage/smollm2"), help="Keeps the demo's texts.")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begun = time.process_time()
    sys.argv = ["dsas", *arguments_of(asked, str(real_model("smollm2")))]
    with contextlib.suppress(SystemExit):
        cli.main()
    found = read_sweep(asked.out).found
    print(f"n = {found.prompts} prompts x {found.seeds}; {(time.process_time() - begun) / 60:.1f} minutes of one core")
    print("| series | strength | KL, nats | toxic, % | perplexity ratio |\n|---|---|---|---|---|")
    for (series, strength), measures in found.cells.items():
        cells = [said(measures["kl", MEAN], 1, 3), said(measures[TOXIC, ENSEMBLE], 100, 0)]
        cells.append(said(measures["perplexity ratio", MEAN], 1, 3))
        print(f"| {series} | {strength:g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
