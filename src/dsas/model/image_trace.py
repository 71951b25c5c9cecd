"""Maps: the strength applied in a picture, per site, denoising step and position, as recorded while it was drawn.

The numbers are those of `dsas.model.token_trace`: applied strength, and on request the regulator alone and the relative
dose. Only the steered branch is kept, and nothing leaves the device before `maps` is called. Where a
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
    of the pipeline's batch are the images (where guidance ends during the run: each picture, with the mean of its
    branches), and a site that reads the prompts has the negative ones after them, filled
    up with zeros where these are shorter. images: for each site Int (row), which image each row of its map is of; of a
    prompt the first one.
    """

    sites: tuple[str, ...]
    strengths: tuple[Grid, ...]
    steps: tuple[int, ...]
    strength: Float[Tensor, " image"]
    regulators: tuple[Grid, ...] = ()
    doses: tuple[Grid, ...] = ()
    images: tuple[Int[Tensor, " row"], ...] = ()

    def mean(self) -> Float[Tensor, " site"]:
        """Return the mean applied strength of every site."""
        return torch.stack([grid.mean() if grid.numel() else grid.new_zeros(()) for grid in self.strengths])

    def hits(self, threshold: float | Float[Tensor, " image"]) -> Int[Tensor, " site"]:
        """Return at how many positions, over all steps, each site got more than `threshold`, one or one per image.

        Raises OptionError for another number of thresholds.
        """
        least = torch.as_tensor(threshold, dtype=torch.float32).reshape(-1)
        if len(least) not in (1, len(self.strength)):
            raise OptionError(f"expected one threshold, or {len(self.strength)}, got {len(least)}")
        counts = list[Tensor]()
        for number, grid in enumerate(self.strengths):
            images = self.images[number] if self.images else _spread(len(self.strength), len(grid))
            each = least.expand(len(self.strength))[images].abs().view(-1, 1, 1, 1)
            counts.append((grid.abs() > each).sum() if grid.numel() else torch.tensor(0))
        return torch.stack(counts)

    def heat(self, height: int, width: int, *, step: int | None = None) -> Float[Tensor, "image height width"]:
        """Return the mean absolute value over the picture's sites and steps (or at one step), enlarged to its size.

        Each frame of a video whose frames are rows of their own is an image. Raises OptionError for a step that did
        not run, StateError when no site was recorded whose tokens are the positions of the picture.
        """
        if step is not None and step not in self.steps:
            raise OptionError(f"step {step} did not run; those that did: {', '.join(map(str, self.steps))}")
        grids = [grid for grid in self.strengths if grid.numel() and grid.shape[1] == len(self.steps)]
        grids = [grid for grid in grids if grid.shape[2] > 1]
        if not grids:
            raise StateError(
                "no site was recorded whose tokens are the positions of the picture, only sites of the prompt, or of "
                "the picture together with a prompt or another picture"
            )
        chosen = slice(None) if step is None else slice(self.steps.index(step), self.steps.index(step) + 1)
        rows = max(map(len, grids))
        enlarged = [
            torch.nn.functional.interpolate(
                grid[:, chosen].abs().mean(1, keepdim=True), (height, width), mode="nearest"
            ).repeat_interleave(rows // len(grid), dim=0)
            for grid in grids
        ]
        return torch.cat(enlarged, dim=1).mean(1)

    def plot(self, picture: Foreign, image: int = 0) -> "Figure":
        """Return a matplotlib figure: a picture, and where it was steered at each step, from 0 to the given strength.

        picture: as the pipeline gave it, by any output type ("pil", "np", "pt", "latent"). image: which one; of a video
        whose frames are rows of their own, which frame.
        Raises OptionError when there is no such image, or what is given is not a picture, MissingExtraError without
        matplotlib.
        """
        from dsas.views.pictures import as_picture, heat_figure

        shown = as_picture(picture)
        height, width = shown.shape[:2]
        rows = len(self.heat(height, width))
        if not 0 <= image < rows:
            raise OptionError(f"expected an image from 0 to {rows - 1}, got {image}")
        heats = [self.heat(height, width, step=step)[image].numpy() for step in self.steps]
        peak = float(self.strength[_spread(len(self.strength), rows)[image]].abs()) or 1.0
        return heat_figure(shown, heats, titles=[f"step {step + 1}" for step in self.steps], peak=peak)

    def of(self, site: str) -> Grid:
        """Return the map of one site. Raises OptionError, with the closest names, for a site that is not there."""
        if site not in self.sites:
            raise OptionError(f"no site {site!r} was recorded; closest: {closest(site, self.sites)}")
        return self.strengths[self.sites.index(site)]


def _spread(images: int, rows: int) -> Int[Tensor, " row"]:
    """Return the image of each row: frames are side by side, and a prompt belongs to the first image that has it."""
    return torch.arange(rows) * images // max(1, rows)


class _Run:
    """What was recorded of one run.

    found: maps by site and step, of each pass, with how many copies of the pictures it had. steps: for each step how
    many rows and copies there were. prompts: maps of sites that read prompts, by site and branch; `drawn` says whether
    pictures were drawn of these.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[int, int], list[tuple[list[Tensor], int]]] = {}
        self.steps: dict[int, tuple[int, int]] = {}
        self.prompts: dict[int, dict[str, list[Tensor]]] = {}
        self.drawn = False


class PictureRecorder:
    """Collects what is applied in a run of a pipeline, separately per thread."""

    def __init__(self, sites: Sequence[str]) -> None:
        self._sites = tuple(sites)
        self._runs: ByThread[_Run] = ByThread()

    def has_passes(self, thread: Thread | None = None) -> bool:
        """Whether anything was recorded that `maps` would return."""
        run = self._runs.of(thread)
        return run is not None and bool(run.found or run.prompts)

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
            run.drawn = True

    def restart(self) -> None:
        """Forget what was recorded, since a new run begins, except prompts of which no picture was drawn yet."""
        before, run = self._runs.own(), _Run()
        if before is not None and not before.drawn:
            run.prompts = before.prompts
        self._runs.put(run)

    def add(self, site: int, step: ForwardPass | None, *values: Float[Tensor, "batch token _"]) -> None:
        """Record what site number `site` did: what it applied, and then, if kept, regulator and dose."""
        assert step is not None  # in a pipeline every site has a step
        run = self._runs.own() or self._runs.put(_Run())
        height, width = step.grid or (1, step.tokens)
        maps = [value.detach().float().mean(-1).expand(-1, step.tokens) for value in values[:3]]
        maps = [value.unflatten(1, (height, width)) for value in maps]
        if step.denoising is not None:
            run.found.setdefault((site, step.denoising.number), []).append((maps, step.copies))
            run.prompts.pop(site, None)  # these passes had no known step
            return
        if run.drawn:  # the prompts of another run
            run.prompts, run.drawn = {}, False
        run.prompts.setdefault(site, {})[step.branch] = maps

    def add_gain(self, site: int, factor: float, gain: Tensor | None) -> NoReturn:
        """Raise StateError: in a pipeline a gain says nothing without its pass, so `add` is called."""
        raise StateError("a pipeline's gains are recorded with their pass")

    def add_outside(self, site: int, values: Tensor, real: Tensor) -> NoReturn:
        """Raise StateError: every site of a pipeline is recorded by `add`."""
        raise StateError("all sites of a pipeline are recorded by add")

    def prompt_end(self) -> NoReturn:
        """Raise StateError: the prompt of a picture is in no pass of a denoiser."""
        raise StateError("a pipeline that draws pictures reads no prompt that ends")

    read_end = prompt_end

    def maps(self, strength: Float[Tensor, " row"], *, thread: Thread | None = None) -> Maps:
        """Return the record of the last run; `strength` as given. Raises StateError when there is none."""
        run = self._runs.of(thread)
        if run is None or not (run.found or run.prompts):
            raise StateError(
                "nothing was recorded: run the pipeline once while steering is applied with record=True, and ask in "
                "the thread that ran it, or pass maps(thread=...) (compiled code records nothing)"
            )
        rows, copies = next(iter(run.steps.values()), (len(strength), 1))
        pictures = rows // (copies or 1)
        if _is_uneven(run):
            rows, copies = pictures, 1
        passes = [maps for values in run.found.values() for maps, _ in values]
        kinds = max(map(len, [*passes, *(maps for read in run.prompts.values() for maps in read.values())]))
        grids = [tuple(_grid(run, site, kind) for site in range(len(self._sites))) for kind in range(kinds)]
        images = tuple(
            _of_prompts(run.prompts[site], pictures) if site in run.prompts else _spread(rows, len(grid))
            for site, grid in enumerate(grids[0])
        )
        asked = per_row(strength, rows, copies=copies)
        return Maps(self._sites, grids[0], tuple(run.steps), asked, *grids[1:], images=images)

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
    if site in run.prompts:
        return _stacked([maps[kind] for _, maps in sorted(run.prompts[site].items())])
    uneven = _is_uneven(run)
    kept = dict[int, list[Tensor]]()
    for number in run.steps:
        for maps, copies in run.found.get((site, number), ()):
            one = maps[kind].unflatten(0, (copies or 1, -1)).mean(0) if uneven else maps[kind]
            kept.setdefault(number, []).append(one)
    if not kept:
        return torch.zeros(0, 0, 0, 0)
    if len({len(one) for passes in kept.values() for one in passes}) > 1:
        raise StateError("passes of one run had different numbers of rows, so the picture of each row is unknown")
    each = {number: torch.stack(passes).mean(0).cpu() for number, passes in kept.items()}
    idle = torch.zeros_like(next(iter(each.values())))  # where the denoiser of another step ran
    return torch.stack([each.get(number, idle) for number in run.steps], dim=1)


def _is_uneven(run: _Run) -> bool:
    """Whether some passes had more branches of guidance than others."""
    copies = {copies for passes in run.found.values() for _, copies in passes}
    return len(copies | {copies for _, copies in run.steps.values()}) > 1


def _of_prompts(branches: dict[str, list[Tensor]], images: int) -> Int[Tensor, " row"]:
    """Return which image each prompt, and then each negative prompt, belongs to."""
    return torch.cat([_spread(images, len(maps[0])) for _, maps in sorted(branches.items())])


def _stacked(maps: list[Float[Tensor, "prompt 1 token"]]) -> Grid:
    """Return maps of prompts below each other, in one step, filled up to the longest."""
    tokens = max(one.shape[-1] for one in maps)
    filled = [torch.nn.functional.pad(one.cpu(), (0, tokens - one.shape[-1])) for one in maps]
    return torch.cat(filled).unsqueeze(1)
