"""Images: a page of a pipeline's pictures over strengths, with and without regulators, and where they were steered."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dsas.cli.app import app
from dsas.cli.checks import check_model, check_out
from dsas.cli.choices import Branch
from dsas.cli.models import hide_foreign_bars
from dsas.cli.options import METHOD, OUTPUT, REPEATABLE, STEERING, AsJson, Device, Precision
from dsas.errors import OptionError
from dsas.steering.folder import steering_folder

PICTURES = "Pictures"


@app.command(epilog='Example: `dsas images ./scenes ./no-red --prompt "a red circle" --strength 0 --strength 1`')
def images(
    pipeline: Annotated[str, typer.Argument(help="Folder or hub id of a diffusers pipeline.")],
    steering: Annotated[str, typer.Argument(help=STEERING)],
    prompt: Annotated[list[str], typer.Option(help=f"What to draw. {REPEATABLE}", rich_help_panel=PICTURES)],
    strength: Annotated[
        list[float] | None, typer.Option(min=0.0, help=f"0 is unsteered. {REPEATABLE}", rich_help_panel=METHOD)
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the first prompt; prompt i has SEED + i.", rich_help_panel=PICTURES)
    ] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.", rich_help_panel=PICTURES)] = 20,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; default: the pipeline's own.", rich_help_panel=PICTURES)
    ] = None,
    branch: Annotated[
        Branch, typer.Option(help="Which branch of guidance is steered.", rich_help_panel=METHOD)
    ] = "conditional",
    options: Annotated[
        str, typer.Option(help="JSON object of further arguments of the pipeline's call.", rich_help_panel=PICTURES)
    ] = "{}",
    out: Annotated[Path, typer.Option(help="Folder for the page and its figures.", rich_help_panel=OUTPUT)] = Path(
        "out/images"
    ),
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw prompts with a steered pipeline and write a page that compares."""
    given = _options(options) | ({} if guidance is None else {"guidance_scale": guidance})
    folder = steering_folder(steering)
    check_out(out)
    check_model(pipeline, "diffusers pipeline")
    import dsas
    from dsas.model.loading import load_pipeline
    from dsas.reports.pictures import compare_pictures, write_pictures

    hide_foreign_bars()
    drawing = dsas.Drawing(steps=steps, options=given, seed=seed, branch=branch)
    chosen = dsas.Steering.from_pretrained(folder)
    loaded = load_pipeline(pipeline, device=device, precision=precision)
    strengths = strength or [0.0, 0.5, 1.0, 2.0]
    compared = compare_pictures(loaded, chosen, prompt, strengths, drawing)
    page = write_pictures(out, f"What {Path(steering).name} does to pictures", compared)
    if as_json:
        means = [{name: float(mean) for name, mean in zip(m.sites, m.mean(), strict=True)} for m in compared.maps]
        print(json.dumps({"page": str(page), "strengths": strengths, "mean_strengths": means}))
        return
    print(f"page: {page}")


def _options(given: str) -> dict[str, object]:
    """Return the JSON object. Raises OptionError for anything else."""
    try:
        found = json.loads(given)
    except ValueError as error:
        raise OptionError(f"--options must be a JSON object, got {given!r:.60}: {error}") from error
    if not isinstance(found, dict):
        raise OptionError(f"--options must be a JSON object, got {given!r:.60}")
    return found
