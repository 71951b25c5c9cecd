"""Picture passes: which rows of a pipeline's pass are steered, and which denoising step it is.

Neither is told by the model's arguments alone:

    guidance   With classifier-free guidance the denoiser runs each picture twice, with and without the prompt. U-Nets,
               SD3 and PixArt stack both in one batch, unconditional rows first; FLUX runs the conditional batch, then
               the other. How many pictures there are is what `prepare_latents` of the pipeline returns.
    step       The scheduler's own index, over its order: a second-order one runs the model twice per step. Schedulers
               without an index have no timestep twice, but for the warm-up of PNDM, which belongs to the step it warms.

Source: classifier-free guidance, arXiv 2207.12598. Limitations: no more than two branches (perturbed attention and
editing by instruction have three), and only families whose order of branches was checked; `branch="both"` steers the
others.
"""

import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dsas.errors import OptionError, StateError, closest
from dsas.model.foreign import Arguments, Foreign, Given, Options
from dsas.model.forward_pass import Denoising, ForwardPass
from dsas.model.hooks import Hooks
from dsas.model.pipeline_modules import PIPELINE_FAMILIES, Branch, PipelineModules
from dsas.model.sites import Site


def denoising_of(scheduler: Foreign, timestep: Any) -> Denoising:
    """Return which denoising step of the schedule a call of the denoiser with this timestep is."""
    levels = torch.as_tensor(scheduler.timesteps).double().cpu()
    order = int(getattr(scheduler, "order", 1))
    place = getattr(scheduler, "step_index", None)
    place = getattr(scheduler, "begin_index", None) if place is None else place
    if place is None or not 0 <= place < len(levels):
        if not hasattr(scheduler, "step_index"):
            levels, order = torch.unique_consecutive(levels), 1
        now = torch.as_tensor(timestep).double().cpu().reshape(-1)[0]
        place = int((levels - now).abs().argmin())
    return Denoising(place // order, -(-len(levels) // order), place)


class _State(threading.local):
    """What is known of the run of this thread; None before it is."""

    def __init__(self) -> None:
        self.images: int | None = None
        self.place: int | None = None
        self.size: tuple[int, int] | None = None
        self.encoded: dict[str, int] = {}
        self.passes: dict[str, ForwardPass] = {}


class PicturePasses:
    """Keeps the current pass of each part of a pipeline, for the calling thread."""

    always = True
    active = exact = False

    def __init__(self, parts: PipelineModules, branch: Branch = "conditional") -> None:
        """Read the parts; `calls` are the modules to hook and how. Raises OptionError when branches cannot be told."""
        if branch not in get_args(Branch):
            raise OptionError(f"branch must be one of {get_args(Branch)}, got {branch!r}")
        self._parts, self._branch, self._state = parts, branch, _State()
        self._guidance = parts.family.guidance if parts.family else None
        self.pipeline = parts.pipeline
        self._watches_latents = hasattr(self.pipeline, "prepare_latents")
        if branch != "both" and (self._guidance is None or not self._watches_latents):
            kind = type(parts.denoiser).__name__
            raise OptionError(
                f"which rows of a {kind} are conditional is known for {closest(kind, PIPELINE_FAMILIES, 4)} only, in "
                "pipelines that prepare latents; branch='both' steers all rows"
            )
        readers: dict[str, Callable[..., Any]] = dict.fromkeys(parts.encoders, self._encode)
        readers |= dict.fromkeys(parts.denoisers, self._denoise)
        self.calls = [(parts.get_submodule(name), partial(read, name)) for name, read in readers.items()]

    unsteered = ()  # rows are chosen at each site instead

    def end(self, module: nn.Module, output: Given) -> bool:
        """Return True: a run is told by its beginning."""
        return True

    def acts(self) -> bool:
        """Whether a pass is steered: every one, at the rows that are chosen at each site."""
        return True

    def records(self, site: Site) -> bool:
        """Whether what happens at a site can be recorded: always."""
        return True

    def watch_runs(self, hooks: Hooks, restarted: Callable[[], None]) -> None:
        """Let a run be seen when it begins, and call `restarted` then."""
        if self._watches_latents:
            hooks.on_result(self.pipeline, "prepare_latents", lambda prepared: (self.begin(prepared), restarted()))

    def begin(self, prepared: Given) -> None:
        """Take note of a run that begins, by what the pipeline's `prepare_latents` returned."""
        latents = prepared[0] if isinstance(prepared, (tuple, list)) else prepared
        self._state.images, self._state.place = len(latents), None

    def at(self, site: Site, t: Tensor, given: Given) -> ForwardPass:
        """Return the step at a site that reads `t` in what its module gave: which rows to steer there, and when.

        Raises StateError when the rows of the site are not those of its part.
        """
        made = self._state.passes.get(site.path.partition(".")[0])
        step = ForwardPass(len(t), t.shape[1], device=t.device)
        if made is not None and made.rows is not None:
            if made.batch != len(t) and self._branch != "both":
                raise StateError(
                    f"site {site} has {len(t)} rows in a pass of {made.batch}: which are conditional cannot be told; "
                    "apply with branch='both'"
                )
            rows = made.rows if made.batch == len(t) else slice(0, len(t))
            step = ForwardPass(rows.stop - rows.start, t.shape[1], device=t.device)
            step.rows, step.copies, step.denoising = rows, made.copies, made.denoising
        step.grid = site.grid(given)
        if step.grid is None and not self._parts.reads_text(site):
            step.grid = _grid(t.shape[1], self._state.size)
        return step

    def _encode(self, name: str, args: Arguments, kwargs: Options) -> None:
        """Read a call of a text encoder: the first before a run is of the prompts, the next of the negative ones."""
        tokens = args[0] if args else next((value for value in kwargs.values() if isinstance(value, Tensor)), None)
        count = self._state.encoded.get(name, 0)
        self._state.encoded[name] = count + 1
        if isinstance(tokens, Tensor):
            wanted = self._branch == "both" or (count == 0) == (self._branch == "conditional")
            made = ForwardPass(len(tokens), tokens.shape[-1])
            made.rows = slice(0, len(tokens) if wanted else 0)
            self._state.passes[name] = made

    def _denoise(self, name: str, args: Arguments, kwargs: Options) -> ForwardPass:
        names = tuple(inspect.signature(self._parts.get_submodule(name).forward).parameters)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        sample, timestep = given[names[0]], given.get("timestep")
        if not isinstance(sample, Tensor):
            raise OptionError(f"the {name} ran without {names[0]!r} (got {sorted(given)}), which steering reads")
        self._state.encoded = {}
        self._state.size = _size(sample, given.get("img_ids"))
        denoising = denoising_of(self.pipeline.scheduler, timestep)
        made = ForwardPass(len(sample), sample.shape[1], device=sample.device)
        made.denoising = denoising
        made.rows, made.copies = self._rows(len(sample), denoising.place)
        self._state.place = denoising.place
        self._state.passes[name] = made
        return made

    def _rows(self, rows: int, place: int) -> tuple[slice, int]:
        """Return which of the rows that the denoiser gets are steered, and how often each picture is among them."""
        images = self._state.images or rows
        runs, left = divmod(rows, images)
        if self._branch == "both":
            return slice(0, rows), 1 if left else runs
        if left or runs > 2 or getattr(self.pipeline, "do_perturbed_attention_guidance", False):
            raise StateError(
                f"the denoiser got {rows} rows for {images} pictures: which are conditional cannot be told; apply "
                "with branch='both'"
            )
        conditional = self._branch == "conditional"
        if runs == 2:
            return (slice(images, rows) if conditional else slice(0, images)), 1
        again = self._state.images is not None and self._guidance == "apart" and place == self._state.place
        return slice(0, rows if conditional != again else 0), 1


def _size(sample: Tensor, ids: Any) -> tuple[int, int] | None:
    """Return height and width of what the denoiser gets; FLUX packs them and says where each token stands."""
    if sample.ndim == 4:
        return sample.shape[2], sample.shape[3]
    if isinstance(ids, Tensor) and ids.shape[-1] == 3:
        height, width = (ids.reshape(-1, 3).amax(0)[1:] + 1).tolist()
        return int(height), int(width)
    return None


def _grid(tokens: int, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return height and width of so many positions: those of the latents over a power of two."""
    if size is None:
        return None
    for scale in (1, 2, 4, 8, 16, 32, 64):
        height, width = (-(-side // scale) for side in size)
        if height * width == tokens:
            return height, width
    return None
