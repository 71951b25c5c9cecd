"""Maps: what was applied where in a picture, per site, denoising step and position, as recorded while it was drawn.

The numbers are those of `dsas.model.token_trace`: applied strength, and on request the regulator alone and the relative
dose. Only what concerns the steered branch is kept, and nothing leaves the device before `maps` is asked for. Where a
scheduler runs the denoiser twice in a step, the mean of both is kept.

How a map is drawn is in `dsas.views`.
"""

from collections.abc import Sequence
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsas.errors import OptionError, StateError, closest
from dsas.model.by_thread import ByThread
from dsas.model.foreign import Foreign
from dsas.model.forward_pass import ForwardPass
from dsas.model.site_summary import NOT_RECORDED, SiteSummary
from dsas.model.strength import per_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Grid = Float[Tensor, "image step height width"]


class Maps(NamedTuple):
    """The applied strength (strength x site weight x regulator) of the last run of a pipeline.

    sites: names, in the order of the model. strengths: for each site Float (image, step, height, width), with their
    sign, averaged over neurons where the regulator has one value per neuron; empty where the site never fired, and 0 at
    steps that another denoiser ran. For a site that reads the prompt, an image is a prompt, there is one step, and the
    width counts tokens; the same holds at each step where text and image are one stream. The frames of a video are
    images, or stand below each other. steps: which denoising steps ran. strength: Float (image), what was asked for.
    regulators, doses: as strengths, or empty when recorded without record="doses". With both branches steered, the rows
    of the pipeline's batch are the images.
    """

    sites: tuple[str, ...]
    strengths: tuple[Grid, ...]
    steps: tuple[int, ...]
    strength: Float[Tensor, " image"]
    regulators: tuple[Grid, ...] = ()
    doses: tuple[Grid, ...] = ()

    def mean(self) -> Float[Tensor, " site"]:
        """Return the mean applied strength of every site."""
        return torch.stack([grid.mean() if grid.numel() else grid.new_zeros(()) for grid in self.strengths])

    def hits(self, threshold: float | Float[Tensor, " image"]) -> Int[Tensor, " site"]:
        """Return at how many positions, over all steps, each site got more than `threshold`, one or one per image."""
        least = torch.as_tensor(threshold, dtype=torch.float32).reshape(-1)
        counts = []
        for grid in self.strengths:
            counts.append((grid.abs() > _each(least, len(grid)).abs()).sum() if grid.numel() else torch.tensor(0))
        return torch.stack(counts)

    def heat(self, height: int, width: int, *, step: int | None = None) -> Float[Tensor, "image height width"]:
        """Return the mean size over the sites in the picture, and over steps (or of one), enlarged to a picture's size.

        Raises OptionError for a step that did not run, StateError when no site of the picture was recorded.
        """
        if step is not None and step not in self.steps:
            raise OptionError(f"step {step} did not run; those that did: {', '.join(map(str, self.steps))}")
        images = len(self.strength)
        grids = [grid for grid in self.strengths if len(grid) == images and grid.shape[1] == len(self.steps)]
        grids = [grid for grid in grids if grid.shape[2] > 1]
        if not grids:
            raise StateError("no site of the picture was recorded, only sites of the prompt")
        chosen = slice(None) if step is None else slice(self.steps.index(step), self.steps.index(step) + 1)
        enlarged = [
            torch.nn.functional.interpolate(
                grid[:, chosen].abs().mean(1, keepdim=True), (height, width), mode="nearest"
            )
            for grid in grids
        ]
        return torch.cat(enlarged, dim=1).mean(1)

    def plot(self, picture: Foreign, image: int = 0) -> "Figure":
        """Return a matplotlib figure: a picture, and where it was steered at each step, from 0 to the strength asked.

        picture: as the pipeline gave it, by any output type ("pil", "np", "pt", "latent").
        Raises OptionError when there is no such image, or what is given is no picture, MissingExtraError without
        matplotlib.
        """
        from dsas.views.pictures import as_picture, heat_figure

        if not 0 <= image < len(self.strength):
            raise OptionError(f"expected an image from 0 to {len(self.strength) - 1}, got {image}")
        shown = as_picture(picture)
        height, width = shown.shape[:2]
        heats = [self.heat(height, width, step=step)[image].numpy() for step in self.steps]
        peak = float(self.strength[image].abs()) or 1.0
        return heat_figure(shown, heats, titles=[f"step {step + 1}" for step in self.steps], peak=peak)

    def of(self, site: str) -> Grid:
        """Return the map of one site. Raises OptionError, with the closest names, for a site that is not there."""
        if site not in self.sites:
            raise OptionError(f"no site {site!r} was recorded; closest: {closest(site, self.sites)}")
        return self.strengths[self.sites.index(site)]


def _each(values: Tensor, rows: int) -> Float[Tensor, "row 1 1 1"]:
    """Return values of images for the rows of a site: a prompt's may be fewer, and those of videos one per frame."""
    if len(values) > 1 and len(values) % rows == 0:
        values = values[:: len(values) // rows]
    elif rows % len(values) == 0:
        values = values.repeat_interleave(rows // len(values))
    else:
        raise StateError(
            f"a site has {rows} rows, and it is not known which of the {len(values)} images each belongs to"
        )
    return values.view(-1, 1, 1, 1)


class _Run:
    """What was recorded of one run: maps by site and step, and for each step how many rows and copies there were."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int | None], list[list[Tensor]]] = {}
        self.steps: dict[int, tuple[int, int]] = {}


class PictureRecorder:
    """Collects what is applied in a run of a pipeline, apart for each thread."""

    def __init__(self, sites: Sequence[str]) -> None:
        self._sites = tuple(sites)
        self._runs: ByThread[_Run] = ByThread()

    def has_passes(self, thread: Thread | None = None) -> bool:
        """Whether anything was recorded that `maps` would return."""
        run = self._runs.of(thread)
        return run is not None and bool(run.found)

    def begin(self, step: ForwardPass | None) -> None:
        """Open a pass of the denoiser; going back in the schedule begins a new run."""
        if step is None:
            return
        run = self._runs.own() or self._runs.put(_Run())
        if step.denoising is not None and step.denoising.number < max(run.steps, default=0):
            self.restart()
            run = self._runs.own() or run
        if step.denoising is not None and step.rows is not None and step.rows.stop > step.rows.start:
            run.steps[step.denoising.number] = (step.rows.stop - step.rows.start, step.copies)

    def restart(self) -> None:
        """Forget what was recorded of the denoiser, for a new run begins; sites of the prompt have run already."""
        before, run = self._runs.own(), _Run()
        if before is not None:
            run.found = {key: values for key, values in before.found.items() if key[1] is None}
        self._runs.put(run)

    def add(self, site: int, step: ForwardPass | None, *values: Float[Tensor, "batch token _"]) -> None:
        """Record what site number `site` did: what it applied, and then, if kept, regulator and dose, and no more."""
        assert step is not None  # in a pipeline every site is asked for its step
        run = self._runs.own() or self._runs.put(_Run())
        height, width = step.grid or (1, step.tokens)
        maps = [value.detach().float().mean(-1).expand(-1, step.tokens) for value in values[:3]]
        maps = [value.unflatten(1, (height, width)) for value in maps]
        number = None if step.denoising is None else step.denoising.number
        if number is None:  # once a run, before it begins
            run.found[site, number] = [maps]
        else:
            run.found.setdefault((site, number), []).append(maps)

    def add_gain(self, site: int, factor: float, gain: Tensor | None) -> NoReturn:
        """Raise StateError: in a pipeline a gain says nothing without its pass, so `add` is called."""
        raise StateError("a pipeline's gains are recorded with their pass")

    def add_outside(self, site: int, values: Tensor, real: Tensor) -> NoReturn:
        """Raise StateError: every site of a pipeline is recorded by `add`."""
        raise StateError("all sites of a pipeline are recorded by add")

    def prompt_end(self) -> NoReturn:
        """Raise StateError: the prompt of a picture is in no pass of a denoiser."""
        raise StateError("a pipeline that draws pictures reads no prompt that ends")

    def maps(self, strength: Float[Tensor, " row"], *, thread: Thread | None = None) -> Maps:
        """Return what was recorded of the last run; `strength` as asked for. Raises StateError when that is nothing."""
        run = self._runs.of(thread)
        if run is None or not run.found:
            raise StateError(
                "nothing was recorded: run the pipeline once while steering is applied with record=True, and ask the "
                "thread that ran it, or for it by maps(thread=...) (compiled code records nothing)"
            )
        rows, copies = next(iter(run.steps.values()), (len(strength), 1))
        kinds = max(len(maps) for values in run.found.values() for maps in values)
        grids = [tuple(_grid(run, site, kind) for site in range(len(self._sites))) for kind in range(kinds)]
        asked = per_row(strength, rows, copies=copies)
        return Maps(self._sites, grids[0], tuple(run.steps), asked, *grids[1:])

    def trace(self, strength: Float[Tensor, " row"], *, start: int = 0, thread: Thread | None = None) -> NoReturn:
        """Raise StateError: there are no tokens here."""
        raise StateError("a pipeline draws pictures and has no tokens: use maps() instead of trace()")

    def summaries(
        self, strength: Float[Tensor, " row"], weights: Sequence[float], thread: Thread | None = None
    ) -> list[SiteSummary]:
        """Return what happened at each site in the last run; weights: each site's own."""
        maps = self.maps(strength, thread=thread)
        means = maps.mean()
        hits = [maps.hits(0.5 * weight * maps.strength)[site] for site, weight in enumerate(weights)]
        return [
            SiteSummary(float(means[site]), int(hits[site])) if maps.strengths[site].numel() else NOT_RECORDED
            for site in range(len(weights))
        ]


def _grid(run: _Run, site: int, kind: int) -> Grid:
    """Return one site's map over the steps that ran; the mean where it fired more than once in a step."""
    keys = [(site, None)] if (site, None) in run.found else [(site, number) for number in run.steps]
    each = {key: torch.stack([maps[kind] for maps in run.found[key]]).mean(0).cpu() for key in keys if key in run.found}
    if not each:
        return torch.zeros(0, 0, 0, 0)
    idle = torch.zeros_like(next(iter(each.values())))  # where the denoiser of another step ran
    return torch.stack([each.get(key, idle) for key in keys], dim=1)
