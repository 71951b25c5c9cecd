"""The laws as far as a Steering on an image pipeline can keep or break them: `check_pipeline`.

It is meant for the tiny pipelines of `dsas.testing.pipelines`: it takes some twenty runs, and copies in other dtypes.
Limitations: gradients (pipelines run without them) and torch.compile are not checked.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsas.model.foreign import Foreign, Pipeline
from dsas.model.subject import subject_of
from dsas.steering.composition import Composition
from dsas.steering.steering import Steering
from dsas.testing.laws import close, require
from dsas.testing.passes import state_of
from dsas.testing.steerings import check_exits, require_refused, require_reported
from dsas.testing.watch import Watch
from dsas.testing.ways import Acting, Kind, Way, applied_of

PROMPTS = ("a red dog", "the sky, late")
TOLERANCE = 1e-3  # rounding grows from one denoising step to the next

Draw = Callable[[Any, Sequence[str], Sequence[int]], Tensor]


class Run(NamedTuple):
    """The result of one run: a picture or its latents per prompt, and what was applied, per site and picture."""

    pictures: Tensor
    maps: tuple[Tensor, ...]

    def of(self, row: int) -> "Run":
        """Return the run's result for one prompt."""
        return Run(self.pictures[row : row + 1], tuple(grid[row : row + 1] for grid in self.maps))


class _Bench(NamedTuple):
    """A way of steering, the pipeline, and how it is run."""

    way: Way
    pipeline: Pipeline
    draw: Draw

    def plain(self) -> Tensor:
        return self.draw(self.pipeline, PROMPTS, range(len(PROMPTS)))

    def run(self, rows: Sequence[int] = range(len(PROMPTS)), strength: Any = None) -> Run:
        """Draw some of the prompts, each with the seed that is its number, steered."""
        with self.way.on(self.pipeline, strength) as acting:
            return self.within(acting, rows)

    def within(self, acting: Acting, rows: Sequence[int] = range(len(PROMPTS))) -> Run:
        """Draw while steering is on."""
        pictures = self.draw(self.pipeline, [PROMPTS[row] for row in rows], rows)
        return Run(pictures, tuple(grid for one in applied_of(acting) for grid in one.maps().strengths))

    def state(self) -> list[Foreign]:
        """Return what steering must not change: the modules, and the pipeline's own attributes."""
        return [[state_of(part) for part in subject_of(self.pipeline).module.children()], sorted(vars(self.pipeline))]


def check_pipeline(steering: Steering | Composition, pipeline: Pipeline, draw: Draw, *, way: Kind = "apply") -> None:
    """Raise AssertionError, naming the law, if a Steering breaks one of laws 1 to 6 on a diffusers pipeline.

    draw: called with the pipeline, prompts, and a seed for each; returns a tensor with a picture, or latents, for each,
    which depends on nothing else. way: as in `check_steering`; a fused Steering steers both branches of guidance.
    """
    bench = _Bench(Way(steering, way), pipeline, draw)
    plain = bench.plain()  # in its first run transformers puts its own hooks on text encoders
    both = _check_identity(bench, plain)
    _check_rows(bench, both)
    _check_dtypes(bench)
    check_exits(bench.way, pipeline, subject_of(pipeline).module, bench.state, bench.plain)
    again = bench._replace(way=bench.way.stored()).run()
    require(5, torch.equal(again.pictures, both.pictures), "after saving and loading, other pictures are drawn")
    require_refused(bench.way)
    _check_effect(bench, plain, both)


def _check_identity(bench: _Bench, plain: Tensor) -> Run:
    before = bench.state()
    with bench.way.on(bench.pipeline, 0.0):
        require(1, bench.state() == before, "strength 0 put something on the pipeline, or changed its modules")
        require(1, torch.equal(bench.plain(), plain), "strength 0 changed the pictures")
    both = bench.run()
    require(1, bench.state() == before, "the pipeline or its modules differ after steering from before it")
    require(1, torch.equal(bench.plain(), plain), "the pictures differ after steering from before it")
    if not bench.way.is_fused:
        pictures = bench.run(strength=bench.way.by_row(torch.tensor([0.0, 1.0]))).pictures
        same = close(pictures[:1], plain[:1], TOLERANCE)
        require(1, same, "a picture at strength 0 changed beside one at strength 1")
    return both


def _check_rows(bench: _Bench, both: Run) -> None:
    for row in range(len(PROMPTS)):
        _require_same(bench.run([row]), both.of(row), f"picture {row}, alone and beside the other,")
    _require_same(
        bench.run([1, 0]), Run(both.pictures.flip(0), tuple(g.flip(0) for g in both.maps)), "in another order"
    )
    found: list[Run] = []
    with bench.way.on(bench.pipeline) as acting:
        first = bench.within(acting, [0])
        thread = threading.Thread(target=lambda: found.append(bench.within(acting, [1])))
        thread.start()
        thread.join()
        kept = [grid for one in applied_of(acting) for grid in one.maps().strengths]
        same = all(torch.equal(one, other) for one, other in zip(kept, first.maps, strict=True))
        require(2, same, "another thread's run changed this one's maps")
    for run in found:
        _require_same(run, both.of(1), "in another thread a picture")
    require(2, len(found) == 1, "in another thread nothing was drawn")


def _require_same(one: Run, other: Run, what: str) -> None:
    require(2, close(one.pictures, other.pictures, TOLERANCE), f"{what} is not the same")
    same = all(close(mine, yours, TOLERANCE) for mine, yours in zip(one.maps, other.maps, strict=True))
    require(2, same, f"{what} gets other strengths")


def _check_dtypes(bench: _Bench) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        typed = bench._replace(pipeline=copy.deepcopy(bench.pipeline).to(dtype))
        module = subject_of(typed.pipeline).module
        given = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
        watch = Watch([] if bench.way.is_fused else [rule.site for rule in bench.way.rules], module)
        with warnings.catch_warnings(), bench.way.on(typed.pipeline) as acting:
            warnings.simplefilter("ignore")
            watch.look_after()
            run = typed.within(acting)
        watch.check()
        require(3, run.pictures.dtype == dtype, f"a pipeline in {dtype} draws in {run.pictures.dtype}")
        require(3, bool(torch.isfinite(run.pictures).all()), f"pictures in {dtype} are not finite")
        require(3, all(torch.equal(one, copied) for one, copied in given), "a parameter was written into")
        require(3, all(grid.dtype == torch.float32 for grid in run.maps), "strengths are not recorded in float32")


def _check_effect(bench: _Bench, plain: Tensor, both: Run) -> None:
    with bench.way.on(bench.pipeline) as acting:
        bench.within(acting)
    require_reported(bench.way, acting)
    changed = not torch.equal(both.pictures, plain)
    applied = any(bool(grid.any()) for grid in both.maps)
    require(6, changed or not applied, "strengths were applied, but the pictures are as without steering")
    if bench.way.is_fused:
        with Way(bench.way.steering).on(bench.pipeline, branch="both"):
            pictures = bench.plain()
        require(
            6,
            close(both.pictures, pictures, TOLERANCE),
            "fused, other pictures are drawn than applied to both branches",
        )
