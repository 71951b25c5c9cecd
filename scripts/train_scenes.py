"""Train the small text-to-image model of the demo on scenes drawn by code: `scenes`.

    python scripts/train_scenes.py --minutes 60 --out out/scenes      # one core; writes out/scenes/pipeline
    python scripts/train_scenes.py --smoke                            # a check of about a minute, not a model
    python scripts/train_scenes.py --start models/scenes --minutes 45 --out out/longer   # its denoiser, trained on

First the autoencoder, then denoiser and text encoder together on its latents (v-prediction, uniform times, 10 % of the
captions empty, for guidance), last the decoder alone; each ends with the exponential mean of its weights. A checkpoint
is written every minute and on Ctrl-C; the same command resumes from it, and more --minutes train the denoiser further.
The result is the pipeline in float16, its card with a table of accuracy, and pictures to look at. Step i sees the same
batch in every run; how many steps the minutes allow depends on the machine.

Limitations: one core, and no data but the drawn scenes.
"""

import argparse
import copy
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from scenes.detector import read
from scenes.painting import accuracy, as_markdown, paint, save_grid
from scenes.pipeline import WORDS, blank_pipeline, scene_pipeline
from scenes.rendering import arrange, draw
from scenes.world import Scene, caption, omit, sample

BATCH = {"autoencoder": 16, "denoiser": 64}
PEAK = {"autoencoder": 2e-3, "denoiser": 1e-3, "decoder": 1e-3}
WARM_UP = 200
EMPTY_CAPTIONS = 0.1
KL = 1e-6
DECAY = 0.999
SAVE_EVERY = 60.0
CARD = """---
license: apache-2.0
library_name: diffusers
---
# Scenes: a text-to-image model of {millions:.1f} million parameters

A `StableDiffusionPipeline` for the world of `scenes` in 32x32 pixels: one or two things (shape, colour, size,
position) on one of four backgrounds. It knows no other word. Load it with `scenes.scene_pipeline()`.

Trained on one CPU core by

    python scripts/train_scenes.py --minutes {minutes:g} --autoencoder-minutes {first:g} --pictures {pictures}{start}

in {steps}, on pictures drawn by
code and nothing else.

Share of pictures that keep what a full caption says (guidance 3, 20 steps, one picture a caption, read back by
`scenes.read`; of two things, both must be right). Held-out pairs were never drawn for training. `distance`:
mean distance to the nearest scene, 0 to 255; pictures drawn by code have {floor:.1f} after the autoencoder.

{table}
"""


class Phase:
    """One part of training: its clock sets the learning rate, and its checkpoint holds all that the next step needs."""

    def __init__(self, name: str, modules: list[torch.nn.Module], *, seconds: float, folder: Path) -> None:
        self.name, self.seconds, self.file = name, seconds, folder / f"{name}.pt"
        self.modules = torch.nn.ModuleList(modules)
        self.mean = copy.deepcopy(self.modules).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.modules.parameters(), lr=PEAK[name], weight_decay=0.01, fused=True)
        self.spent, self.step, self.loss = 0.0, 0, math.nan
        if self.file.is_file():
            state = torch.load(self.file, weights_only=True)
            for part in ("modules", "mean", "optimiser"):
                getattr(self, part).load_state_dict(state[part])
            self.spent, self.step, self.loss = state["clock"]

    def run(self, loss: Callable[[int], torch.Tensor], report: Callable[["Phase"], None], stop: Event) -> None:
        """Train until the seconds are spent; the modules end with the mean of their weights.

        loss: the loss of the batch of a step. report: called after each step. Raises KeyboardInterrupt after a
        checkpoint if `stop` was set.
        """
        saved = now = time.monotonic()
        while self.spent < self.seconds:
            self._learn(loss(self.step))
            tick = time.monotonic()
            self.spent, now = self.spent + tick - now, tick
            report(self)
            if now - saved > SAVE_EVERY or stop.is_set():
                self.save()
                saved = now
            if stop.is_set():
                raise KeyboardInterrupt
        self.save()
        self.modules.load_state_dict(self.mean.state_dict())

    def save(self) -> None:
        """Write the checkpoint in one step: a process killed here keeps the previous one."""
        state = {part: getattr(self, part).state_dict() for part in ("modules", "mean", "optimiser")}
        partly = self.file.with_suffix(".partial")
        torch.save(state | {"clock": (self.spent, self.step, self.loss)}, partly)
        os.replace(partly, self.file)

    def _learn(self, loss: torch.Tensor) -> None:
        warm, cosine = min(1.0, (self.step + 1) / WARM_UP), 0.5 * (1 + math.cos(math.pi * self.spent / self.seconds))
        for group in self.optimiser.param_groups:
            group["lr"] = PEAK[self.name] * warm * cosine
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        share = 1 - min(DECAY, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.modules.parameters(), strict=True):
                mean.lerp_(now, share)
        self.loss = loss.item() if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss.item()


def pictures(scenes: list[Scene], *, seed: int) -> torch.Tensor:
    """Return the scenes drawn with random layouts, uint8 of shape (n, 3, 32, 32)."""
    generator = np.random.default_rng(seed)
    drawn = np.stack([draw(scene, arrange(scene, generator)) for scene in scenes])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


def autoencoder_loss(
    step: int, *, pipeline: StableDiffusionPipeline, pool: torch.Tensor, decoder_only: bool
) -> torch.Tensor:
    """Return absolute plus squared error of the reconstructed batch, and a little KL divergence."""
    generator = torch.Generator().manual_seed(step)
    batch = _scaled(pool[torch.randint(len(pool), (BATCH["autoencoder"],), generator=generator)])
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(not decoder_only):
            latents = pipeline.vae.encode(batch).latent_dist
            sampled = latents.sample(generator=generator)
        error = pipeline.vae.decode(sampled).sample.float() - batch
    return error.abs().mean() + error.square().mean() + KL * latents.kl().float().mean()


def denoiser_loss(
    step: int, *, pipeline: StableDiffusionPipeline, latents: torch.Tensor, scenes: list[Scene]
) -> torch.Tensor:
    """Return the mean squared error of the velocity; captions tell a scene in full, in part or not at all."""
    generator, chance = torch.Generator().manual_seed(step), np.random.default_rng(step)
    scheduler, size = pipeline.scheduler, BATCH["denoiser"]
    rows = torch.randint(len(latents), (size,), generator=generator)
    captions = ["" if chance.random() < EMPTY_CAPTIONS else caption(omit(scenes[row], chance)) for row in rows.tolist()]
    tokens = pipeline.tokenizer(captions, padding="max_length", max_length=WORDS, return_tensors="pt").input_ids
    clean = latents[rows]
    noise = torch.randn(clean.shape, generator=generator)
    times = torch.randint(scheduler.config.num_train_timesteps, (size,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = pipeline.text_encoder(tokens).last_hidden_state
        noisy = scheduler.add_noise(clean, noise, times)
        velocity = pipeline.unet(noisy, times, encoder_hidden_states=hidden).sample
    return torch.nn.functional.mse_loss(velocity.float(), scheduler.get_velocity(clean, noise, times))


@torch.no_grad()
def encode(pipeline: StableDiffusionPipeline, pool: torch.Tensor, file: Path) -> torch.Tensor:
    """Return the latents of all pictures (kept in `file`) times a factor (kept in the pipeline): deviation 1."""
    if not file.is_file():
        with torch.autocast("cpu", torch.bfloat16):
            parts = [pipeline.vae.encode(_scaled(part)).latent_dist.mean.float() for part in pool.split(256)]
        torch.save(torch.cat(parts), file)
    found = torch.load(file, weights_only=True)
    factor = 1 / found.std().item()
    pipeline.vae.register_to_config(scaling_factor=factor)
    return found * factor


def train(pipeline: StableDiffusionPipeline, scenes: list[Scene], args: argparse.Namespace) -> list[Phase]:
    """Run the three phases, each from its checkpoint if there is one, under a progress bar."""
    vae = pipeline.vae
    pool = pictures(scenes, seed=1)
    pixels = partial(autoencoder_loss, pipeline=pipeline, pool=pool)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    phases = []

    def phase(name: str, modules: list[torch.nn.Module], minutes: float, loss: Callable[[int], torch.Tensor]) -> None:
        phases.append(Phase(name, modules, seconds=60 * minutes, folder=args.out))
        phases[-1].run(loss, _reporter(progress, args.out), stop)

    with Progress(*columns) as progress, _interrupts() as stop:
        phase("autoencoder", [vae], args.autoencoder_minutes * 2 / 3, partial(pixels, decoder_only=False))
        latents = encode(pipeline, pool, args.out / f"latents-{len(pool)}-{phases[0].step}.pt")
        loss = partial(denoiser_loss, pipeline=pipeline, latents=latents, scenes=scenes)
        phase("denoiser", [pipeline.unet, pipeline.text_encoder], args.minutes, loss)
        phase(
            "decoder",
            [vae.decoder, vae.post_quant_conv],
            args.autoencoder_minutes / 3,
            partial(pixels, decoder_only=True),
        )
    return phases


def scenes_to_draw(n: int) -> list[Scene]:
    """Return `n` random scenes of trained pairs, two of five with one thing."""
    one = sample(2 * n // 5, things=1, seed=0)
    return one + sample(n - len(one), things=2, seed=1)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; `--smoke` sets those that cost time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/scenes"), help="folder of checkpoints and pipeline")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training the denoiser")
    parser.add_argument("--autoencoder-minutes", type=float, default=15.0, help="a third of them for its decoder alone")
    parser.add_argument("--pictures", type=int, default=60_000, help="drawn before training")
    parser.add_argument("--n", type=int, default=200, help="captions of each kind in the table of accuracy")
    parser.add_argument("--start", type=Path, help="a pipeline whose denoiser is trained on; its autoencoder stays")
    parser.add_argument("--smoke", action="store_true", help="a check of about a minute, not a model")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.minutes, args.autoencoder_minutes, args.pictures, args.n = 0.3, 0.2, 500, 4
    if args.start:
        args.autoencoder_minutes = 0.0
    return args


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, and write the pipeline, its card and a grid of pictures."""
    args = parsed(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pipeline = scene_pipeline(args.start) if args.start else blank_pipeline()
    write(pipeline, train(pipeline, scenes_to_draw(args.pictures), args), args)


def write(pipeline: StableDiffusionPipeline, phases: list[Phase], args: argparse.Namespace) -> None:
    """Write pipeline, card and grid; the table is of the weights as they are stored, in float16."""
    folder = args.out / "pipeline"
    parts = (pipeline.vae, pipeline.unet, pipeline.text_encoder)
    for part in parts:
        part.half().float()
    shown = [caption(scene) for scene in sample(36, things=1, seed=7) + sample(36, things=2, seed=8)]
    save_grid(paint(pipeline, shown, seed=0), args.out / "painted.png", columns=12)
    table = as_markdown(accuracy(pipeline, n=args.n))
    with torch.no_grad():
        rebuilt = pipeline.vae(_scaled(pictures(scenes_to_draw(100), seed=2))).sample.clamp(-1, 1)
    text = CARD.format(
        millions=sum(part.num_parameters() for part in parts) / 1e6,
        minutes=args.minutes,
        first=args.autoencoder_minutes,
        start=f" --start {args.start}" if args.start else "",
        pictures=args.pictures,
        steps=", ".join(f"{phase.step:,} steps of the {phase.name}" for phase in phases),
        floor=float(np.mean([found.distance for found in read(((rebuilt + 1) / 2).permute(0, 2, 3, 1).numpy())])),
        table=table,
    )
    for part in parts:
        part.half()
    pipeline.save_pretrained(folder)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(table)
    print(f"wrote {folder}")


def _scaled(pool: torch.Tensor) -> torch.Tensor:
    return pool.float() / 127.5 - 1


def _reporter(progress: Progress, folder: Path) -> Callable[[Phase], None]:
    """Return what moves the bar after a step, and adds a line to log.txt every 200."""
    task = progress.add_task("", total=None)

    def report(phase: Phase) -> None:
        label = f"{phase.name}: step {phase.step}, loss {phase.loss:.4f}"
        progress.update(task, description=label, total=phase.seconds, completed=phase.spent)
        if phase.step % 200 == 0:
            with (folder / "log.txt").open("a") as log:
                log.write(f"{label}, {phase.spent:.0f} s\n")

    return report


@contextmanager
def _interrupts() -> Iterator[Event]:
    """Give an event that Ctrl-C sets, so that a step in progress is finished first."""
    stop = Event()
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    main()
