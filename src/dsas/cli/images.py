"""Images: a page of a pipeline's pictures over strengths, with and without regulators, and where they were steered."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dsas.cli.app import app
from dsas.cli.checks import check_model, check_out
from dsas.cli.choices import Branch
from dsas.cli.models import hide_foreign_bars
from dsas.cli.options import REPEATABLE, STEERING, AsJson, Device, Precision, finite, in_method, in_output
from dsas.cli.output import say, say_json
from dsas.errors import OptionError
from dsas.steering.folder import steering_folder

in_pictures = partial(typer.Option, rich_help_panel="Pictures")


@app.command(epilog='Example: `dsas images ./scenes ./no-red --prompt "a red circle" --strength 0 --strength 1`')
def images(
    pipeline: Annotated[str, typer.Argument(help="Folder or hub id of a diffusers pipeline.")],
    steering: Annotated[str, typer.Argument(help=STEERING)],
    prompt: Annotated[list[str], in_pictures(help=f"What to draw. {REPEATABLE}")],
    strength: Annotated[
        list[float] | None, in_method(min=0.0, callback=finite, help=f"0 is unsteered. {REPEATABLE}")
    ] = None,
    seed: Annotated[int, in_pictures(help="Seed of the first prompt; prompt i has SEED + i.")] = 0,
    steps: Annotated[int, in_pictures(min=1, help="Denoising steps.")] = 20,
    guidance: Annotated[float | None, in_pictures(help="Guidance scale; default: the pipeline's own.")] = None,
    branch: Annotated[Branch, in_method(help="Which branch of guidance is steered.")] = "conditional",
    options: Annotated[str, in_pictures(help="JSON object of further arguments of the pipeline's call.")] = "{}",
    out: Annotated[Path, in_output(help="Folder for the page and its figures.")] = Path("out/images"),
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
        say_json({"page": str(page), "strengths": strengths, "mean_strengths": means})
        return
    say(f"page: {page}")


def _options(given: str) -> dict[str, object]:
    try:
        found = json.loads(given)
    except ValueError as error:
        raise OptionError(f"--options must be a JSON object, got {given!r:.60}: {error}") from error
    if not isinstance(found, dict):
        raise OptionError(f"--options must be a JSON object, got {given!r:.60}")
    return found
