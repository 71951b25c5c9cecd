"""Images: a page of a pipeline's pictures over strengths, with and without regulators, and where they were steered."""

import json
from pathlib import Path
from typing import Annotated

import typer

import dsas
from dsas.cli.options import AsJson, Device, Precision, app, console, hide_foreign_bars
from dsas.errors import OptionError
from dsas.model.image_pipeline import Branch
from dsas.model.loading import load_pipeline


@app.command(epilog='Example: `dsas images ./scenes ./no-red --prompt "a red circle" --strength 0 --strength 1`')
def images(
    pipeline: Annotated[str, typer.Argument(help="Folder or hub id of a diffusers pipeline.")],
    steering: Annotated[str, typer.Argument(help="Folder or hub id of a Steering.")],
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be given several times.")],
    strength: Annotated[list[float] | None, typer.Option(help="0 is unsteered; may be given several times.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first prompt; the next ones count on.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; the pipeline's own when not given.")] = None,
    branch: Annotated[str, typer.Option(help="conditional, unconditional or both.")] = "conditional",
    options: Annotated[str, typer.Option(help="JSON object of further arguments of the pipeline's call.")] = "{}",
    out: Annotated[Path, typer.Option(help="Folder for the page and its figures.")] = Path("out/images"),
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw prompts with a steered pipeline and write a page that compares."""
    from dsas.reports.pictures import compare_pictures, write_pictures

    hide_foreign_bars()
    if branch not in ("conditional", "unconditional", "both"):
        raise OptionError(f"branch must be conditional, unconditional or both, got {branch!r}")
    wanted: Branch = branch
    given = _options(options) | ({} if guidance is None else {"guidance_scale": guidance})
    drawing = dsas.Drawing(steps=steps, options=given, seed=seed, branch=wanted)
    loaded = load_pipeline(pipeline, device=device, precision=precision)
    chosen = dsas.Steering.from_pretrained(steering)
    strengths = strength or [0.0, 0.5, 1.0, 2.0]
    compared = compare_pictures(loaded, chosen, prompt, strengths, drawing)
    page = write_pictures(out, f"What {Path(steering).name} does to pictures", compared)
    if as_json:
        means = [{name: float(mean) for name, mean in zip(m.sites, m.mean(), strict=True)} for m in compared.maps]
        print(json.dumps({"page": str(page), "strengths": strengths, "mean_strengths": means}))
        return
    console.print(f"page: {page}", soft_wrap=True)


def _options(given: str) -> dict[str, object]:
    """Return the JSON object. Raises OptionError for anything else."""
    try:
        found = json.loads(given)
    except ValueError as error:
        raise OptionError(f"--options must be a JSON object, got {given!r:.60}: {error}") from error
    if not isinstance(found, dict):
        raise OptionError(f"--options must be a JSON object, got {given!r:.60}")
    return found
