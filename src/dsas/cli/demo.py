"""Demo: the end-to-end run on a real model."""

import shlex
from pathlib import Path
from typing import Annotated

from dsas.cli.app import app
from dsas.cli.checks import check_out
from dsas.cli.choices import DemoModel
from dsas.cli.models import hide_foreign_bars
from dsas.cli.options import AsJson, Device, Precision, in_model, in_output, in_texts
from dsas.cli.output import console, say, say_json


@app.command(epilog="Example: `dsas demo --out out/demo --model smollm2`")
def demo(
    out: Annotated[Path, in_output(help="Folder for report, Steering and measurements.")] = Path("out/demo"),
    model: Annotated[DemoModel, in_model(help="Packaged model to steer.")] = "smollm2",
    full: Annotated[bool, in_texts("--full", help="Measure more strengths, prompts and sentences.")] = False,
    prompts: Annotated[
        int | None, in_texts(min=1, max=303, help="Held-out prompts; default: the 150 harshest, with --full all 303.")
    ] = None,
    seeds: Annotated[int, in_texts(min=1, help="Continuations per prompt.")] = 1,
    workers: Annotated[
        int | None, in_model(min=1, help="Processes; default: one per processor, as far as memory allows.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit, steer and measure a real language model end to end, and write a report; a second run reuses the first."""
    check_out(out)
    from dsas.demo.run import FULL, QUICK, Machine, run_demo
    from dsas.reports.estimates import summary

    hide_foreign_bars()
    size = FULL if full else QUICK
    size = size._replace(prompts=prompts or size.prompts, seeds=seeds)
    again = ["dsas", "demo", "--out", str(out), "--model", model, *(["--full"] if full else [])]
    again += ["--prompts", str(size.prompts), "--seeds", str(seeds), "--device", device, "--precision", precision]
    result = run_demo(
        out,
        model=model,
        size=size,
        machine=Machine(device, precision, workers or "auto"),
        command=shlex.join(again),
        show=lambda look: None if as_json else console().print(look),
        progress=not as_json,
    )
    if as_json:
        say_json(result.as_dict())
        return
    for line in [*summary(result.found, result.chosen), f"report: {result.report}"]:
        say(line)
