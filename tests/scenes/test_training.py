import importlib.util
import sys
from itertools import count
from pathlib import Path
from threading import Event

import pytest
import torch
from scenes import Sizes, blank_pipeline, scene_pipeline

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_scenes.py"
TINY = Sizes(autoencoder=(8, 8, 8), denoiser=(16, 16), text=16)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_scenes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["train_scenes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clock(script, monkeypatch):
    """A clock that strikes a second at each look, so the number of steps does not depend on the machine."""
    ticks = count()
    monkeypatch.setattr(script.time, "monotonic", lambda: float(next(ticks)))


def _phase(script, folder, *, seconds=6):
    torch.manual_seed(0)
    return script.Phase("autoencoder", [torch.nn.Linear(3, 3)], seconds=seconds, folder=folder)


def _loss(phase):
    return lambda step: phase.modules[0](torch.full((2, 3), 1.0 + step)).square().mean()


def test_a_phase_ends_with_the_mean_of_its_weights(script, clock, tmp_path):
    phase = _phase(script, tmp_path)
    phase.run(_loss(phase), lambda _: None, Event())
    assert phase.step == 6
    assert torch.equal(phase.modules[0].weight, phase.mean[0].weight)
    assert not torch.equal(phase.modules[0].weight, torch.load(phase.file)["modules"]["0.weight"])


def test_an_interrupted_phase_goes_on_to_the_same_weights(script, clock, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = _phase(script, tmp_path / "whole")
    whole.run(_loss(whole), lambda _: None, Event())
    first, stop = _phase(script, tmp_path), Event()
    with pytest.raises(KeyboardInterrupt):
        first.run(_loss(first), lambda phase: stop.set() if phase.step == 3 else None, stop)
    second = _phase(script, tmp_path)
    assert second.step == 3
    second.run(_loss(second), lambda _: None, Event())
    assert torch.equal(second.modules[0].weight, whole.modules[0].weight)


def test_the_decoder_learns_alone_when_asked(script):
    pipeline = blank_pipeline(TINY)
    pool = script.pictures(script.scenes_to_draw(20), seed=0)
    script.autoencoder_loss(0, pipeline=pipeline, pool=pool, decoder_only=True).backward()
    assert all(weight.grad is None for weight in pipeline.vae.encoder.parameters())
    assert all(weight.grad is not None for weight in pipeline.vae.decoder.parameters())


def test_latents_have_spread_one_and_are_kept_from_run_to_run(script, tmp_path):
    pipeline, pool = blank_pipeline(TINY), script.pictures(script.scenes_to_draw(20), seed=0)
    latents = script.encode(pipeline, pool, tmp_path / "latents.pt")
    assert latents.std().item() == pytest.approx(1)
    again = blank_pipeline(TINY)
    assert torch.equal(script.encode(again, pool, tmp_path / "latents.pt"), latents)
    assert again.vae.config.scaling_factor == pipeline.vae.config.scaling_factor != 0.18215


def test_a_step_sees_the_same_batch_in_every_run(script):
    pipeline, scenes, latents = blank_pipeline(TINY), script.scenes_to_draw(20), torch.randn(20, 4, 8, 8)
    losses = [
        script.denoiser_loss(step, pipeline=pipeline, latents=latents, scenes=scenes).item() for step in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_script_writes_a_pipeline_a_card_and_pictures(script, clock, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "blank_pipeline", lambda: blank_pipeline(TINY))
    monkeypatch.setattr(script, "BATCH", {"autoencoder": 2, "denoiser": 2})
    script.main(
        ["--out", str(tmp_path), "--minutes", "0.1", "--autoencoder-minutes", "0.1", "--pictures", "20", "--n", "1"]
    )
    assert "| one thing, trained pairs | 1 |" in capsys.readouterr().out
    card = (tmp_path / "pipeline" / "README.md").read_text()
    assert "--minutes 0.1 --autoencoder-minutes 0.1 --pictures 20" in card
    assert "4 steps of the autoencoder, 6 steps of the denoiser, 2 steps of the decoder" in card
    assert "two things, held-out pairs" in card
    assert (tmp_path / "painted.png").is_file()
    assert (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_pipeline_that_is_given_has_its_denoiser_trained_on_and_keeps_its_autoencoder(
    script, clock, tmp_path, monkeypatch
):
    first, before = blank_pipeline(TINY), tmp_path / "before"
    first.save_pretrained(before)
    monkeypatch.setattr(script, "BATCH", {"autoencoder": 2, "denoiser": 2})
    given = ["--start", str(before), "--out", str(tmp_path), "--minutes", "0.1", "--pictures", "20", "--n", "1"]
    script.main(given)
    after = scene_pipeline(tmp_path / "pipeline")
    for part in ("vae", "unet"):
        pairs = zip(getattr(first, part).parameters(), getattr(after, part).parameters(), strict=True)
        assert all(torch.equal(one.half(), two.half()) for one, two in pairs) == (part == "vae")
    card = (tmp_path / "pipeline" / "README.md").read_text()
    assert f"--autoencoder-minutes 0 --pictures 20 --start {before}" in card
    assert "0 steps of the autoencoder, 6 steps of the denoiser, 0 steps of the decoder" in card


def test_a_smoke_run_takes_half_a_minute_of_training(script):
    args = script.parsed(["--smoke"])
    assert (args.minutes + args.autoencoder_minutes, args.pictures, args.n) == (0.5, 500, 4)
