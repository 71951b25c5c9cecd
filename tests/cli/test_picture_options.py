"""Pictures on the command line: the library's own choices, fits of pipelines, and what a damaged folder says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pictures import OPTIONS

pytest.importorskip("diffusers")

import dsas
from dsas.cli.picture_options import DRAWN, Pooling, is_pipeline
from dsas.errors import OptionError
from dsas.model.drawing import OURS, PicturePooling
from dsas.model.loading import load_pipeline
from dsas.testing.pipelines import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline("sd").save_pretrained(made / "tiny")
    for name, word in (("source", "red dog"), ("control", "sky"), ("target", "blue dog")):
        (made / f"{name}.txt").write_text("\n".join(f"a {word}, {n}" for n in range(5)))
    return made


def test_what_is_written_again_is_the_librarys() -> None:
    assert DRAWN == OURS
    assert get_args(Pooling) == get_args(PicturePooling)


def test_a_pipeline_is_fitted_from_captions_as_the_library_fits_it(
    run: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    sets = [word for name in ("source", "control", "target") for word in (f"--{name}", folder / f"{name}.txt")]
    how = ["--steps", 1, "--seed", 3, "--guidance", 4, "--negative", "fog", "--pooling", "position", "--batch-size", 3]
    how += [
        "--options",
        json.dumps(OPTIONS["sd"]),
        "--selection",
        "all",
        "--transform",
        "paired",
        "--sites",
        "unet.**attn2",
    ]
    done = run("fit", folder / "tiny", *sets, *how, "--regulator", "logistic", "--out", tmp_path / "made")
    assert done.status == 0, done.err
    assert "Steering for a diffusers pipeline with UNet2DConditionModel" in done.out
    assert "prompts: source 5, control 5, target 5" in done.out
    options = {**OPTIONS["sd"], "guidance_scale": 4.0, "negative_prompt": "fog"}
    texts: dict[str, Any] = {
        name: (folder / f"{name}.txt").read_text().splitlines() for name in ("source", "control", "target")
    }
    expected = dsas.fit(
        tiny_pipeline("sd"), **texts, transform="paired", regulator="logistic", sites="unet.**attn2", selection="all",
        reading=dsas.Drawing(1, options, seed=3, batch_size=3, pooling="position"), progress=False,
    )  # fmt: skip
    assert dsas.Steering.from_pretrained(tmp_path / "made").digest() == expected.digest()
    assert not list(tmp_path.glob(".made*"))
    card = (tmp_path / "made" / "README.md").read_text()
    assert "with steering.apply(pipeline):" in card
    assert "generate" not in card


@pytest.mark.parametrize("negative", ["fog", ["fog"] * 4, ["fog", "rain", "fog", "snow", "fog"]])
def test_a_negative_prompt_goes_with_every_batch_and_with_its_own_prompt(folder: Path, negative: Any) -> None:
    texts: dict[str, Any] = {
        name: (folder / f"{name}.txt").read_text().splitlines() for name in ("source", "control", "target")
    }
    pipeline, options = tiny_pipeline("sd"), {**OPTIONS["sd"], "negative_prompt": negative}

    def fitted(batch_size: int) -> dsas.Steering:
        drawing = dsas.Drawing(steps=1, batch_size=batch_size, options=options, branch="unconditional")
        return dsas.fit(pipeline, **texts, sites="unet.**attn2", selection="all", reading=drawing, progress=False)

    one, four = ([rule.transform.get_buffer("vector") for rule in fitted(size).rules] for size in (1, 4))
    for vector, same in zip(one, four, strict=True):
        assert float((vector - same).abs().max()) < 1e-4


def test_options_that_the_pipeline_does_not_take_are_told_by_name(folder: Path) -> None:
    texts: dict[str, Any] = {name: (folder / f"{name}.txt").read_text().splitlines() for name in ("source", "control")}
    for options, message in (
        ({"guidance": 3.0}, "StableDiffusionPipeline takes no option 'guidance'; closest: 'guidance_scale'"),
        ({"guidance_scale": "high"}, "cannot be run with {'guidance_scale': 'high'}: "),
        ({"negative_prompt": ["fog", "rain"]}, "negative_prompt has 2 texts, and a set has 4 prompts or more"),
    ):
        with pytest.raises(OptionError, match=message):
            dsas.fit(
                tiny_pipeline("sd"), **texts, target=texts["control"][::-1], sites="unet.**attn2", progress=False,
                reading=dsas.Drawing(steps=1, options=options),
            )  # fmt: skip


def test_a_pipeline_is_told_from_a_model_by_its_index(folder: Path, tmp_path: Path) -> None:
    assert is_pipeline(str(folder / "tiny"))
    assert not is_pipeline(str(tmp_path))
    assert not is_pipeline("model.gguf")
    assert not is_pipeline("nobody/nothing-of-the-kind")


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "Flux9Pipeline"},
        {"unet": ["diffusers", "UNet9DConditionModel"]},
        {"unet": ["nowhere", "UNet2DConditionModel"]},
        {"text_encoder": ["transformers", "NoSuchModel"]},
        {"vae": "AutoencoderKL"},
    ],
)
def test_a_folder_of_another_release_ends_in_one_error_that_says_so(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    for part in (folder / "tiny").iterdir():
        (tmp_path / part.name).symlink_to(part)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "model_index.json").write_text(json.dumps(index | change | {"_diffusers_version": "99.0"}))
    with pytest.raises(OptionError, match=r"no pipeline could be loaded from .*saved by diffusers 99.0, this is "):
        load_pipeline(str(tmp_path))
