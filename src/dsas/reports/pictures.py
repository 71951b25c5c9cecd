"""Pictures: what a Steering does to the pictures of some prompts, over strengths, with and without its regulators.

Every picture of a prompt starts from the same noise. Without regulators means a constant 1 in their place: the same
transforms, everywhere. The maps are those of the largest strength. Left out: measures of what is in the pictures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from dsas.errors import ActivationError, OptionError
from dsas.files.atomic import replace_files
from dsas.model.drawing import Drawing, draw, prompt_batches
from dsas.model.foreign import Pipeline
from dsas.model.image_trace import Maps
from dsas.regulators.constant import Constant
from dsas.reports.page import Page, write_page
from dsas.steering.steering import Steering
from dsas.views.pictures import grid_figure, heat_figure, png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pictures = Float[np.ndarray, "prompt height width 3"]
WITH, WITHOUT = "with regulators", "without"
SHOWN_STEPS = 5


class Comparison(NamedTuple):
    """Pictures of each prompt: by row (`WITH`, `WITHOUT`) and by strength; and the maps of each prompt."""

    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    pictures: dict[str, list[Pictures]]
    maps: list[Maps]


def everywhere(steering: Steering) -> Steering:
    """Return the Steering with a constant 1 for every regulator."""
    rules = [rule._replace(regulator=Constant(1.0)) for rule in steering.rules]
    return Steering(rules, steering.model, {**steering.settings, "regulator": "constant"})


def compare_pictures(
    pipeline: Pipeline, steering: Steering, prompts: Sequence[str], strengths: Sequence[float], drawing: Drawing
) -> Comparison:
    """Draw one picture a prompt at every strength, with and without regulators, from the drawing's seed on.

    Raises OptionError without a prompt or a strength above 0, and for more than one image a prompt; ActivationError
    where the pipeline overflows, as at too large a strength.
    """
    if not prompts or not strengths or max(strengths) <= 0 or drawing.images != 1:
        raise OptionError("expected a prompt or more, a strength above 0, and a drawing of one image a prompt")
    batches = prompt_batches(prompts, range(len(prompts)), drawing.batch_size)
    maps: list[Maps] = []
    pictures: dict[str, list[Pictures]] = {}
    for row, acting in ((WITH, steering), (WITHOUT, everywhere(steering))):
        pictures[row] = []
        for strength in strengths:
            drawn = []
            for batch in batches:
                with acting.apply(pipeline, strength, branch=drawing.branch) as applied:
                    drawn.append(draw(pipeline, batch, drawing, output_type="np"))
                if not np.isfinite(drawn[-1]).all():
                    raise ActivationError(
                        f"at strength {strength:g} the pictures are not numbers: steer at a smaller one"
                    )
                if row == WITH and strength == max(strengths):
                    maps += [one_of(applied.maps(), number) for number in range(len(batch.prompts))]
            pictures[row].append(np.concatenate(drawn))
    return Comparison(tuple(prompts), tuple(strengths), pictures, maps[: len(prompts)])


def one_of(maps: Maps, image: int) -> Maps:
    """Return the maps of one image."""
    kinds = [tuple(grid[image : image + 1] for grid in kind) for kind in (maps.strengths, maps.regulators, maps.doses)]
    return maps._replace(
        strengths=kinds[0], regulators=kinds[1], doses=kinds[2], strength=maps.strength[image : image + 1]
    )


def write_pictures(folder: str | Path, title: str, compared: Comparison) -> Path:
    """Write the figures as PNG files and a page that holds them into `folder`, and return the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = Page(title, "Each row starts from the same noise; strength 0 is the unsteered pipeline.")
    columns = [f"strength {strength:g}" for strength in compared.strengths]
    for number, prompt in enumerate(compared.prompts):
        rows = [[pictures[number] for pictures in of_row] for of_row in compared.pictures.values()]
        grid = png_of(grid_figure(rows, rows=list(compared.pictures), columns=columns))
        heat = png_of(_heat(compared, number))
        replace_files({folder / f"grid-{number + 1}.png": grid, folder / f"heat-{number + 1}.png": heat})
        page.heading(prompt)
        page.picture(grid, "The prompt's picture over strengths, with the regulators, and without them everywhere.")
        page.picture(heat, f"Mean applied strength over sites, by denoising step, at {max(compared.strengths):g}.")
    write_page(folder / "pictures.html", page)
    return folder / "pictures.html"


def _heat(compared: Comparison, number: int) -> "Figure":
    picture = compared.pictures[WITH][compared.strengths.index(max(compared.strengths))][number]
    maps = compared.maps[number]
    places = np.unique(np.linspace(0, len(maps.steps) - 1, SHOWN_STEPS).round().astype(int))
    steps = [maps.steps[place] for place in places]
    height, width = picture.shape[:2]
    heats = [maps.heat(height, width, step=step)[0].numpy() for step in steps]
    return heat_figure(picture, heats, titles=[f"step {step + 1}" for step in steps])
