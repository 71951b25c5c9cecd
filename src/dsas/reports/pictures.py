"""Pictures: what a Steering does to the pictures of some prompts, over strengths, with and without its regulators.

Every picture of a prompt starts from the same noise. "Without regulators" means a constant 1 in their place: the same
transforms, everywhere. Maps are for one strength, all on one scale, from 0 to that strength. What the page says about
concept, control and region is measured on pixels (`dsas.evaluation.picture_verdict`).

Limitations: the contents of the pictures are not recognised.
"""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import ActivationError, OptionError, StateError
from dsas.evaluation.picture_verdict import PictureVerdict, Region, picture_verdict, shown, verdict_rows
from dsas.files.atomic import replace_files
from dsas.files.json_values import JsonObject
from dsas.model.drawing import Drawing, Prompts, draw, prompt_batches
from dsas.model.foreign import Pipeline
from dsas.model.hooks import Hooks
from dsas.model.image_trace import Maps
from dsas.regulators.constant import Constant
from dsas.reports.heat import TokenHeat
from dsas.reports.page import Page, write_page
from dsas.reports.prompt_words import PromptWords
from dsas.steering.steering import Steering
from dsas.views.pictures import grid_figure, heat_figure, png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pictures = Float[np.ndarray, "prompt height width 3"]
WITH, WITHOUT = "with regulators", "without"
SHOWN_STEPS = 5
OTHER_SEED = 1_000_003  # added to the seed for the pictures from other noise
COLUMNS = (
    "Near target: share of pictures nearer to the target's than to the unsteered one. Changes are means over pixels, "
    "of 255, between pictures from the same noise: everywhere, inside and outside the region, of control prompts; and "
    "by another seed."
)


class Beside(NamedTuple):
    """Prompts to compare with: control, whose pictures should stay; target, what each prompt should become."""

    control: tuple[str, ...] = ()
    target: tuple[str, ...] = ()


ALONE = Beside()


class Comparison(NamedTuple):
    """The pictures drawn, and what was measured on them.

    prompts: the given prompts, then the control prompts; `asked` is the number of the former. pictures: those of each
    prompt, by row (`WITH`, `WITHOUT`) and by strength. target: unsteered pictures of the target prompts, or None.
    mapped: the strength for the maps, one per prompt, and for the words: each prompt's tokens at each site of a text
    encoder. verdicts: by row and strength, 0 left out.
    """

    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    pictures: dict[str, list[Pictures]]
    maps: list[Maps]
    asked: int
    target: Pictures | None
    mapped: float
    words: list[list[TokenHeat]]
    verdicts: dict[str, dict[float, PictureVerdict]]

    def rows(self) -> list[JsonObject]:
        """Return a row per measure that was taken, with and without the regulators and by strength."""
        return [{"regulators": row == WITH, **one} for row, of in self.verdicts.items() for one in verdict_rows(of)]


class _Steered(NamedTuple):
    pictures: Pictures
    maps: list[Maps]
    words: list[list[TokenHeat]]


def everywhere(steering: Steering) -> Steering:
    """Return the Steering with a constant 1 for every regulator."""
    rules = [rule._replace(regulator=Constant(1.0)) for rule in steering.rules]
    return Steering(rules, steering.model, {**steering.settings, "regulator": "constant"})


def compare_pictures(
    pipeline: Pipeline,
    steering: Steering,
    prompts: Sequence[str],
    strengths: Sequence[float],
    drawing: Drawing,
    *,
    beside: Beside = ALONE,
    mapped: float | None = None,
) -> Comparison:
    """Draw one picture per prompt at every strength, with and without regulators, from the drawing's seed on.

    beside: control and target prompts, for the verdict. mapped: which of the strengths is mapped; when not given, the
    one that is nearest to the Steering's own. Raises OptionError for a drawing that cannot be drawn, without a prompt
    or a strength above 0, for more than one image per prompt, for targets that are not one per prompt, and for a
    pipeline that draws videos; ActivationError where the pipeline overflows, as at too large a strength.
    """
    drawing.check()
    shown = mapped_strength(strengths, steering.default_strength, mapped)
    if not prompts or drawing.images != 1:
        raise OptionError("expected at least one prompt, a strength above 0, and a drawing of one image per prompt")
    if beside.target and len(beside.target) != len(prompts):
        raise OptionError(f"expected a target prompt for each of {len(prompts)} prompts, got {len(beside.target)}")
    _check_draws_pictures(pipeline)
    every = (*prompts, *beside.control)
    plain = _unsteered(pipeline, every, drawing)
    target = _unsteered(pipeline, beside.target, drawing) if beside.target else None
    other = _unsteered(pipeline, every, drawing._replace(seed=drawing.seed + OTHER_SEED))
    found = {
        row: {strength: _steered(pipeline, acting, every, strength, drawing) for strength in strengths if strength > 0}
        for row, acting in ((WITH, steering), (WITHOUT, everywhere(steering)))
    }
    maps, words = found[WITH][shown].maps, found[WITH][shown].words
    acted = _acted(maps[: len(prompts)], plain, shown)
    verdicts = {
        row: {
            strength: picture_verdict(plain, one.pictures, other, prompts=len(prompts), target=target, acted=acted)
            for strength, one in of_row.items()
        }
        for row, of_row in found.items()
    }
    pictures = {
        row: [of_row[strength].pictures if strength > 0 else plain for strength in strengths]
        for row, of_row in found.items()
    }
    return Comparison(every, tuple(strengths), pictures, maps, len(prompts), target, shown, words, verdicts)


def mapped_strength(strengths: Sequence[float], own: float, mapped: float | None) -> float:
    """Return the strength whose maps are shown: the given one, or the one above 0 nearest to the Steering's own.

    Raises OptionError when none is above 0, one is negative or not finite, or the given one is not among them.
    """
    if not strengths or max(strengths) <= 0:
        raise OptionError("expected at least one prompt, a strength above 0, and a drawing of one image per prompt")
    if not all(0 <= strength < float("inf") for strength in strengths):
        raise OptionError(f"expected finite strengths of 0 or more, got {', '.join(f'{one:g}' for one in strengths)}")
    above = [strength for strength in strengths if strength > 0]
    if mapped is None:
        return min(above, key=lambda strength: (abs(strength - own), strength))
    if mapped not in above:
        listed = ", ".join(f"{one:g}" for one in above)
        raise OptionError(f"maps are of a strength that is drawn and above 0 ({listed}), got {mapped:g}")
    return mapped


def one_of(maps: Maps, image: int, images: int | None = None) -> Maps:
    """Return the maps of one image.

    images: how many were drawn, where both branches of guidance were steered: its map is then the mean of both, except
    at a site of a text encoder, where it is that of the prompt. Frames that are rows of their own count as one image.
    """
    each = images or len(maps.strength)

    def row_of(grid: Tensor, site: int) -> Tensor:
        own = maps.images[site] % each == image if maps.images else torch.arange(len(grid)) % each == image
        reads_prompts = maps.sites[site].startswith("text_encoder")
        return grid[own][:1] if reads_prompts else grid[own].mean(0, keepdim=True)

    def of(grids: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(row_of(grid, number) if grid.numel() else grid for number, grid in enumerate(grids))

    strength = maps.strength[image::each][:1]
    parts = {"strengths": of(maps.strengths), "regulators": of(maps.regulators), "doses": of(maps.doses)}
    return maps._replace(**parts, strength=strength, images=())


def write_pictures(folder: str | Path, title: str, compared: Comparison) -> Path:
    """Write the figures as PNG files and a page that holds them into `folder`, and return the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = Page(title, "Each row starts from the same noise; strength 0 is the unsteered pipeline.")
    page.heading(f"Verdict at strength {compared.mapped:g}")
    for line in compared.verdicts[WITH][compared.mapped].lines():
        page.paragraph(line)
    page.table(list(_rows(compared)), COLUMNS)
    columns = [f"strength {strength:g}" for strength in compared.strengths]
    for number, prompt in enumerate(compared.prompts):
        rows = [[pictures[number] for pictures in of_row] for of_row in compared.pictures.values()]
        figures = {f"grid-{number + 1}.png": png_of(grid_figure(rows, rows=list(compared.pictures), columns=columns))}
        page.heading(prompt if number < compared.asked else f"control: {prompt}")
        page.picture(
            figures[f"grid-{number + 1}.png"],
            "The prompt's picture over strengths, with the regulators, and without them everywhere.",
        )
        if (heat := _heat(compared, number)) is not None:
            figures[f"heat-{number + 1}.png"] = png_of(heat)
            caption = (
                f"Mean applied strength over sites, by denoising step, at {compared.mapped:g}: from 0 to that strength."
            )
            page.picture(figures[f"heat-{number + 1}.png"], caption)
        if compared.words[number]:
            caption = f"Strength applied to each token at the text encoders' sites, at {compared.mapped:g}."
            page.heat(compared.words[number], caption, peak=compared.mapped)
        replace_files({folder / name: data for name, data in figures.items()})
    write_page(folder / "pictures.html", page)
    return folder / "pictures.html"


def _check_draws_pictures(pipeline: Pipeline) -> None:
    """Raise OptionError for a pipeline of videos."""
    taken = inspect.signature(type(pipeline).__call__).parameters
    if "num_frames" in taken or "num_videos_per_prompt" in taken:
        raise OptionError(
            f"a {type(pipeline).__name__} draws videos, and this page compares single pictures: draw them with "
            "steering.apply(pipeline), and maps() says where each frame was steered"
        )


def _unsteered(pipeline: Pipeline, prompts: Sequence[str], drawing: Drawing) -> Pictures:
    batches = prompt_batches(prompts, range(len(prompts)), drawing.batch_size)
    return np.concatenate([_drawn(pipeline, batch, drawing) for batch in batches])


def _drawn(pipeline: Pipeline, batch: Prompts, drawing: Drawing, strength: float = 0.0) -> Pictures:
    drawn = np.asarray(draw(pipeline, batch, drawing, output_type="np"))
    if not np.isfinite(drawn).all():
        raise ActivationError(f"at strength {strength:g} the pictures are not numbers: steer at a smaller one")
    return drawn


def _steered(
    pipeline: Pipeline, steering: Steering, prompts: Sequence[str], strength: float, drawing: Drawing
) -> _Steered:
    read = PromptWords(pipeline, drawing.branch)
    pictures, maps, words = [], list[Maps](), list[list[TokenHeat]]()
    with Hooks() as hooks:
        read.watch(hooks)
        for batch in prompt_batches(prompts, range(len(prompts)), drawing.batch_size):
            read.begin()
            with steering.apply(pipeline, strength, branch=drawing.branch) as applied:
                pictures.append(_drawn(pipeline, batch, drawing, strength))
            found = applied.maps()
            each = [one_of(found, row, len(batch.prompts)) for row in range(len(batch.prompts))]
            maps += each
            words += [read.heats(one, row) for row, one in enumerate(each)]
    return _Steered(np.concatenate(pictures), maps, words)


def _acted(maps: Sequence[Maps], pictures: Pictures, strength: float) -> Region | None:
    """Return where at least half of the strength was applied, over sites and steps, or None without such sites."""
    height, width = pictures.shape[1:3]
    try:
        heats = torch.cat([one.heat(height, width) for one in maps])
    except StateError:
        return None
    return (heats >= strength / 2).numpy()


def _rows(compared: Comparison) -> Iterator[dict[str, str | float | int]]:
    for row, verdicts in compared.verdicts.items():
        for strength, found in verdicts.items():
            some = {
                "near target": found.gone,
                "change": found.change,
                "inside": found.inside,
                "outside": found.outside,
                "control": found.control,
                "other seed": found.noise,
            }
            cells = {name: "-" if value is None else _cell(shown(value)) for name, value in some.items()}
            yield {"regulators": row, "strength": float(strength), **cells}


def _cell(said: str) -> str | float:
    """Return a value of the table, as a number where it has no interval beside it: columns of numbers are narrow."""
    return said if "[" in said else float(said)


def _heat(compared: Comparison, number: int) -> "Figure | None":
    """Return a prompt's maps over its picture, or None if no site of the picture was steered."""
    picture = compared.pictures[WITH][compared.strengths.index(compared.mapped)][number]
    maps = compared.maps[number]
    height, width = picture.shape[:2]
    places = np.unique(np.linspace(0, len(maps.steps) - 1, SHOWN_STEPS).round().astype(int)) if maps.steps else []
    steps = [maps.steps[place] for place in places]
    try:
        heats = [maps.heat(height, width, step=step)[0].numpy() for step in steps]
    except StateError:
        return None
    titles = [f"step {step + 1}" for step in steps]
    return heat_figure(picture, heats, titles=titles, peak=compared.mapped) if heats else None
