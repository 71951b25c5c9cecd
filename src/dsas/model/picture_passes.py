"""Picture passes: which rows of a pipeline's pass are steered, and which denoising step it is.

The model's arguments alone say neither. `dsas.model.guidance` finds the rows from the number of pictures in the run and
the order of its branches, `dsas.model.denoising` finds the step from the scheduler. Both are known only inside a run of
the pipeline that was watched from its beginning (`dsas.model.pipeline_runs`). Anything unknown is an error at a site
that is steered by branch; `branch="both"` steers all rows.

Source: classifier-free guidance, arXiv 2207.12598. Limitations: no more than two branches (perturbed attention and
editing by instruction have three), and only families whose order of branches was checked.
"""

import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

from torch import Tensor, nn

from dsas.errors import OptionError, StateError, closest
from dsas.model.denoising import denoising_of
from dsas.model.foreign import Arguments, Foreign, Given, Options
from dsas.model.forward_pass import UNKNOWN, Denoising, ForwardPass
from dsas.model.guidance import Branch, Call, Chosen, Guidance
from dsas.model.hooks import Hooks
from dsas.model.pipeline_modules import PIPELINE_FAMILIES, PipelineModules
from dsas.model.pipeline_runs import PipelineRun
from dsas.model.sites import Site

_WAY_OUT = "apply with branch='both', which steers all rows"


class _Pass(NamedTuple):
    """A call of one part: the rows of its batch, which are steered (or why this is unknown), and its denoising step.

    frames: those of a video, each of which may be a row inside. size: size of the latents, (height, width), or (frame,
    height, width). text: tokens of the prompt in a sequence of both streams. branch: that of the prompts that are read.
    """

    batch: int
    chosen: Chosen
    denoising: Denoising | None = None
    frames: int = 1
    size: tuple[int, ...] | None = None
    text: int | None = None
    branch: str = ""


class _State(threading.local):
    """What is known of the passes of this thread."""

    def __init__(self, make: Callable[[], Guidance]) -> None:
        self.passes: dict[str, _Pass] = {}
        self.guidance = make()


class PicturePasses:
    """Keeps the current pass of each part of a pipeline, for the calling thread."""

    always = True
    unseen = "which rows of a batch are conditional, and which denoising step it is"  # in a compiled graph
    active = exact = False

    def __init__(self, parts: PipelineModules, branch: Branch = "conditional") -> None:
        """Read the parts; `calls` are the modules to hook and how. Raises OptionError for unknown branches."""
        if branch not in get_args(Branch):
            raise OptionError(f"branch must be one of {get_args(Branch)}, got {branch!r}")
        self._parts, self._branch, self.pipeline = parts, branch, parts.pipeline
        self._has_guider = parts.pipeline.components.get("guider") is not None
        known = self._has_guider or (parts.family is not None and hasattr(self.pipeline, "prepare_latents"))
        if branch != "both" and not known:
            kind = type(parts.denoiser).__name__
            raise OptionError(
                f"which rows of a {kind} are conditional is known for {closest(kind, PIPELINE_FAMILIES, 4)} only, in "
                "pipelines that prepare latents; branch='both' steers all rows"
            )
        order = None if parts.family is None else parts.family.guidance
        self._make = partial(Guidance, self.pipeline, order, branch, is_named=self._has_guider)
        self._state, self._run = _State(self._make), PipelineRun(self.pipeline)
        readers: dict[str, Callable[..., Any]] = dict.fromkeys(parts.encoders, self._encode)
        readers |= dict.fromkeys([*parts.companions, *parts.denoisers], self._denoise)
        self.calls = [(parts.get_submodule(name), partial(read, name)) for name, read in readers.items()]

    unsteered = ()  # rows are chosen at each site instead

    def rows_at(self, site: Site, given: Given) -> int:
        """Return 1: activations of pipelines have an axis of rows."""
        return 1

    def end(self, module: nn.Module, output: Given) -> bool:
        """Return True: a run is recognised by its beginning."""
        return True

    def running(self) -> None:
        """Return None: the pass is looked up at each site."""

    def acts(self) -> bool:
        """Whether a pass is steered: every pass is, at the rows that are chosen at each site."""
        return True

    def records(self, site: Site) -> bool:
        """Whether what happens at a site can be recorded: always."""
        return True

    def watch_runs(self, hooks: Hooks, restarted: Callable[[], None]) -> None:
        """Watch runs from now on, and call `restarted` when one begins; nothing is known of earlier ones."""
        self._state, self._run = _State(self._make), PipelineRun(self.pipeline)

        def begun() -> None:
            self._parts.check_unchanged()
            self._state.guidance = self._make()
            restarted()

        self._run.watch(hooks, [self._parts.get_submodule(name) for name in self._parts.denoisers], begun)

    def at(self, site: Site, t: Tensor, given: Given) -> ForwardPass:
        """Return the pass at a site that reads `t` from its module's output: which rows to steer, and at which step.

        Raises StateError when the rows or the step are not known, unless both branches are steered, and for a module
        that diffusers skips in some passes.
        """
        self._parts.check_computed(site)
        part = site.path.partition(".")[0]
        made = self._state.passes.get(part)
        if made is None:
            made = _Pass(0, Chosen(slice(0, 0), UNKNOWN, f"nothing is known of the rows of the {part}"))
        each, refusal = self._rows_of_each(site, made, len(t)), made.chosen.refusal
        if not each and not refusal:
            refusal = f"{len(t)} rows in a pass of {made.batch}: it is unknown which are conditional"
        if refusal and self._branch != "both":
            raise StateError(f"site {site}: {refusal}; {_WAY_OUT}")
        rows, copies, _ = made.chosen
        rows = slice(rows.start * each, rows.stop * each) if each else slice(0, len(t))
        span = self._parts.stream(site, given, made.text)
        tokens = t.shape[1] if span is None else len(range(*span.indices(t.shape[1])))
        step = ForwardPass(rows.stop - rows.start, tokens, device=t.device)
        step.rows, step.copies, step.denoising = rows, copies if each else UNKNOWN, made.denoising
        step.span, step.grid, step.branch = span, site.grid(given), made.branch
        if step.grid is None and self._parts.has_picture(site):
            step.grid = _grid(tokens, made.size)
        return step

    def _rows_of_each(self, site: Site, made: _Pass, rows: int) -> int:
        """Return how many rows a site has per row of its part (the frames of a video), or 0 if unknown."""
        if rows == made.batch:
            return 1
        per_frame = made.frames > 1 and rows == made.batch * made.frames and not self._parts.is_temporal(site)
        return made.frames if per_frame else 0

    def _encode(self, name: str, args: Arguments, kwargs: Options) -> None:
        """Read a call of a text encoder; the call around it says whether it reads prompts or negative prompts."""
        tokens = args[0] if args else next((value for value in kwargs.values() if isinstance(value, Tensor)), None)
        self._state.passes.pop(name, None)
        if not isinstance(tokens, Tensor):
            return
        encoding, rows = self._run.encoding, len(tokens)
        branch = None if encoding is None else encoding.branch(name, rows)
        where = "outside of the pipeline's encode_prompt" if encoding is None else "other than once per prompt"
        refusal = f"the {name} was called {where}, so it is unknown whether it reads prompts or negative prompts"
        wanted = self._branch == "both" or branch in (None, self._branch)
        chosen = Chosen(slice(0, rows if wanted else 0), 1 if branch else UNKNOWN, "" if branch else refusal)
        self._state.passes[name] = _Pass(rows, chosen, branch=branch or "")

    def _denoise(self, name: str, args: Arguments, kwargs: Options) -> ForwardPass:
        """Read a call of a denoiser, or of a ControlNet beside it."""
        given = _by_name(self._parts.get_submodule(name), args, kwargs)
        sample: Foreign = next(iter(given.values()), None)
        one = sample[0] if isinstance(sample, (list, tuple)) and sample else sample
        if not isinstance(one, Tensor):
            raise OptionError(f"the {name} ran without the pictures that steering needs (got {sorted(given)})")
        place, beside = self._run.now(), name in self._parts.companions
        denoising = denoising_of(
            self.pipeline.scheduler, given.get("timestep", given.get("t")), running=place is not None
        )
        named = "" if beside else self._run.take_named()
        images = len(sample) if self._has_guider and place is not None else self._run.images(place)
        if images is None:
            chosen = Chosen(slice(0, len(sample)), UNKNOWN, self._unseen(name, place is not None))
        else:
            at = None if denoising is None else denoising.place
            text = given.get("encoder_hidden_states", given.get("cap_feats"))
            chosen = self._state.guidance.chosen(Call(name, len(sample), images, named, at, text, beside))
        if denoising is None and not chosen.refusal:
            chosen = chosen._replace(refusal=f"it is unknown which denoising step this pass of the {name} is")
        frames = sample.shape[2] if isinstance(sample, Tensor) and sample.ndim == 5 else 1
        size, text_tokens = _size(sample, given), self._parts.text_tokens(name, given)
        self._state.passes[name] = _Pass(len(sample), chosen, denoising, frames, size, text_tokens)
        step = ForwardPass(chosen.rows.stop - chosen.rows.start, 1, device=one.device)
        step.rows, step.copies, step.denoising = chosen.rows, chosen.copies, denoising
        return step

    def _unseen(self, name: str, running: bool) -> str:
        """Return why nothing is known of the pictures of a pass."""
        kind = type(self.pipeline).__name__
        if running:
            return (
                f"this run of the {kind} had begun before it was steered, or did not prepare its latents by "
                "prepare_latents, or another run came between, so its rows are not known"
            )
        return (
            f"the {name} was called outside a run of this {kind}, such as by a loop of your own or by another "
            "pipeline of the same parts (steer that one), so its rows are not known"
        )


def _by_name(module: nn.Module, args: Arguments, kwargs: Options) -> dict[str, Any]:
    """Return the arguments of a call by name, the first of the signature first."""
    names = tuple(inspect.signature(module.forward).parameters)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: given[name] for name in names if name in given}


def _size(sample: Foreign, given: dict[str, Any]) -> tuple[int, ...] | None:
    """Return height and width of the denoiser's input, after frames if any; packed inputs say where tokens are."""
    if isinstance(sample, (list, tuple)):
        return tuple(sample[0].shape[-2:])
    if sample.ndim > 3:
        return tuple(sample.shape[2:])
    ids, shapes = given.get("img_ids"), given.get("img_shapes")
    if isinstance(ids, Tensor) and ids.shape[-1] in (
        3,
        4,
    ):  # FLUX.2: picture first, token last, too
        height, width = (ids.reshape(-1, ids.shape[-1]).amax(0)[1:3] + 1).tolist()
        return int(height), int(width)
    while isinstance(shapes, list) and shapes:
        shapes = shapes[0]
    return tuple(shapes[-2:]) if isinstance(shapes, tuple) else None


def _grid(tokens: int, size: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Return height and width of this many positions: the latents' size over a power of two, frame below frame."""
    if size is None:
        return None
    for scale in (1, 2, 4, 8, 16, 32, 64):
        height, width = (-(-side // scale) for side in size[-2:])
        frames, left = divmod(tokens, height * width)
        if not left and frames in (1, *size[:-2]):
            return height * frames, width
    return None
