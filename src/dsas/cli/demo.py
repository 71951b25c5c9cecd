"""Demo: the end-to-end run on a real model."""

import json
from pathlib import Path
from typing import Annotated

from dsas.cli.app import app
from dsas.cli.checks import check_out
from dsas.cli.choices import DemoModel
from dsas.cli.models import hide_foreign_bars
from dsas.cli.options import AsJson, Device, in_model, in_output, in_texts


@app.command(epilog="Example: `dsas demo --out out/demo --model smollm2`")
def demo(
    out: Annotated[Path, in_output(help="Folder for report, Steering and measurements.")] = Path("out/demo"),
    model: Annotated[DemoModel, in_model(help="Taken from registry packages.")] = "smollm2",
    prompts: Annotated[int, in_texts(min=1, max=303, help="Held-out prompts to continue.")] = 100,
    seeds: Annotated[int, in_texts(min=1, help="Continuations per prompt.")] = 1,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit, steer and measure a real language model end to end, and write a report; a second run reuses the first."""
    check_out(out)
    from dsas.demo.report import summary, write_report
    from dsas.demo.run import run_demo

    hide_foreign_bars()
    result = run_demo(out, model=model, device=device, prompts=prompts, seeds=seeds, progress=not as_json)
    command = f"dsas demo --out {out} --model {model} --prompts {prompts} --seeds {seeds}"
    write_report(out / "report.html", result, command)
    if as_json:
        print(json.dumps(result.as_dict()))
        return
    for line in [*summary(result), f"report: {out / 'report.html'}"]:
        print(line)
