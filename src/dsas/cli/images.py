"""Images: a page of a pipeline's pictures over strengths, with and without regulators, and where they were steered."""

from pathlib import Path
from typing import Annotated

import typer

from dsas.cli.app import app
from dsas.cli.checks import check_model, check_out, check_table
from dsas.cli.models import hide_foreign_bars
from dsas.cli.options import REPEATABLE, STEERING, AsJson, Device, Precision, Table, finite, in_method, in_output
from dsas.cli.output import say, say_json
from dsas.cli.picture_options import (
    NO_OPTIONS,
    BranchName,
    CallOptions,
    Drawn,
    Guidance,
    Negative,
    Seed,
    Steps,
    call_options,
    check_pipeline,
    in_pictures,
)
from dsas.errors import OptionError
from dsas.files.tidy_tables import write_rows
from dsas.steering.folder import steering_folder

MAPPED = "Strength whose maps are shown; default: the one drawn that is nearest to the Steering's own."
CONTROL = f"Another prompt, whose picture should stay as it is. {REPEATABLE}"
TARGET = f"What the picture of a prompt should become: one per --prompt, in order. {REPEATABLE}"


@app.command(epilog='Example: `dsas images ./scenes ./no-red --prompt "a red circle" --strength 0 --strength 1`')
def images(
    pipeline: Annotated[str, typer.Argument(help="Folder or hub id of a diffusers pipeline.")],
    steering: Annotated[str, typer.Argument(help=STEERING)],
    prompt: Annotated[list[str], in_pictures(help=f"What to draw. {REPEATABLE}")],
    control: Annotated[list[str] | None, in_pictures(help=CONTROL)] = None,
    target: Annotated[list[str] | None, in_pictures(help=TARGET)] = None,
    strength: Annotated[
        list[float] | None, in_method(min=0.0, callback=finite, help=f"0 is unsteered. {REPEATABLE}")
    ] = None,
    maps_at: Annotated[float | None, in_method(callback=finite, help=MAPPED)] = None,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = None,
    negative: Negative = None,
    branch: BranchName = "conditional",
    options: CallOptions = NO_OPTIONS,
    out: Annotated[Path, in_output(help="Folder for the page and its figures.")] = Path("out/images"),
    device: Device = "auto",
    precision: Precision = "auto",
    table: Table = None,
    as_json: AsJson = False,
) -> None:
    """Draw prompts with a steered pipeline, and write a page that compares the pictures and measures the change."""
    drawn = Drawn(steps, call_options(options, guidance, negative), seed, branch)
    strengths = strength or [0.0, 0.5, 1.0, 2.0]
    _check(prompt, target or [], strengths, maps_at)
    folder = steering_folder(steering)
    check_out(out)
    check_table(table)
    check_model(pipeline, "diffusers pipeline")
    check_pipeline(pipeline)
    import dsas
    from dsas.model.loading import load_pipeline
    from dsas.reports.pictures import WITH, Beside, compare_pictures, write_pictures

    hide_foreign_bars()
    chosen = dsas.Steering.from_pretrained(folder)
    loaded = load_pipeline(pipeline, device=device, precision=precision)
    beside = Beside(tuple(control or ()), tuple(target or ()))
    compared = compare_pictures(loaded, chosen, prompt, strengths, drawn.drawing(), beside=beside, mapped=maps_at)
    page = write_pictures(out, f"What {Path(steering).name} does to pictures", compared)
    if table is not None:
        write_rows(table, compared.rows())
    verdict = compared.verdicts[WITH][compared.mapped]
    if as_json:
        means = [{name: float(mean) for name, mean in zip(m.sites, m.mean(), strict=True)} for m in compared.maps]
        measured = {key: value if value is None else value._asdict() for key, value in verdict._asdict().items()}
        told = {"strengths": strengths, "maps_at": compared.mapped, "verdict": measured, "mean_strengths": means}
        say_json({"page": str(page), **told})
        return
    for line in [f"at strength {compared.mapped:g}:", *verdict.lines(), f"page: {page}"]:
        say(line)


def _check(prompts: list[str], targets: list[str], strengths: list[float], mapped: float | None) -> None:
    """Raise OptionError for prompts and strengths that make no page."""
    if max(strengths) <= 0:
        raise OptionError("expected a --strength above 0: at 0 nothing is steered")
    if mapped is not None and not (mapped > 0 and mapped in strengths):
        listed = ", ".join(f"{one:g}" for one in strengths if one > 0)
        raise OptionError(f"--maps-at must be a strength that is drawn and above 0 ({listed}), got {mapped:g}")
    if targets and len(targets) != len(prompts):
        raise OptionError(f"expected a --target for each of {len(prompts)} --prompt, got {len(targets)}")
