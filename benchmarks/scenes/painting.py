"""Paint captions with a pipeline, and count how often the pictures show what was asked for.

The noise of picture i depends on `seed` and i alone: two calls with one seed give pairs of pictures to compare, in any
batch size and with or without steering.

Measures of steering itself are in `dsas.evaluation`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from scenes.detector import Agreement, agreement, read
from scenes.rendering import SIDE
from scenes.world import caption, sample

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

STEPS, GUIDANCE = 20, 3.0
_BATCH = 50
_APART = 1_000_003


class Accuracy(NamedTuple):
    """How often the pictures of one kind of caption keep its words.

    n: captions, one picture each. shares: of pictures that keep each word (`Agreement`). whole: of pictures that keep
    all of them. distance: mean distance to the nearest scene, 0 to 255; 0 for a picture drawn by code.
    """

    kind: str
    n: int
    shares: dict[str, float]
    whole: float
    distance: float


def paint(
    pipeline: "StableDiffusionPipeline",
    captions: Sequence[str],
    *,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> UInt8[np.ndarray, "image height width 3"]:
    """Return one picture per caption. guidance: 1 is none (the empty caption is then not run at all)."""
    pipeline.set_progress_bar_config(disable=True)
    painted = []
    for start in range(0, len(captions), _BATCH):
        part = list(captions[start : start + _BATCH])
        noise = [torch.Generator().manual_seed(_APART * seed + start + row) for row in range(len(part))]
        images = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=noise,
            output_type="np",
            return_dict=False,
        )[0]
        painted.append(np.rint(np.asarray(images) * 255).astype(np.uint8))
    return np.concatenate(painted)


def accuracy(pipeline: "StableDiffusionPipeline", *, n: int, seed: int = 0) -> list[Accuracy]:
    """Return the accuracy on `n` full captions of each kind: one thing or two, pairs seen in training or held out."""
    table = []
    for held_out in (False, True):
        for things in (1, 2):
            scenes = sample(n, things=things, seed=1000 + seed, held_out=held_out)
            readings = read(paint(pipeline, [caption(scene) for scene in scenes], seed=seed))
            kept = np.array([agreement(found.scene, scene) for found, scene in zip(readings, scenes, strict=True)])
            kind = f"{'one thing' if things == 1 else 'two things'}, {'held-out' if held_out else 'trained'} pairs"
            shares = dict(zip(Agreement._fields, kept.mean(0).tolist(), strict=True))
            distance = float(np.mean([reading.distance for reading in readings]))
            table.append(Accuracy(kind, n, shares, float(kept.all(1).mean()), distance))
    return table


def as_markdown(table: list[Accuracy]) -> str:
    """Return the accuracies as a table of markdown."""
    heads = ("captions", "n", *Agreement._fields, "all of them", "distance")
    rows = [
        (
            row.kind,
            str(row.n),
            *(f"{share:.3f}" for share in row.shares.values()),
            f"{row.whole:.3f}",
            f"{row.distance:.1f}",
        )
        for row in table
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ("---",) * len(heads), *rows))


def save_grid(images: UInt8[np.ndarray, "image height width 3"], file: Path, *, columns: int, scale: int = 3) -> None:
    """Write pictures side by side, `columns` a row, each pixel `scale` wide; the last row is filled up with grey."""
    from PIL import Image

    rows = -(-len(images) // columns)
    cells = np.full((rows * columns, *images.shape[1:]), 128, np.uint8)
    cells[: len(images)] = images
    whole = cells.reshape(rows, columns, *images.shape[1:]).swapaxes(1, 2).reshape(rows * SIDE, columns * SIDE, 3)
    Image.fromarray(whole.repeat(scale, 0).repeat(scale, 1)).save(file)
