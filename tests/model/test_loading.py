"""Loading: a model and its tokenizer from a folder, and what happens when there is none."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from makers import logits_of, unchecked
from multimodal import llava, whisper
from transformers import T5Config, T5ForConditionalGeneration

from dsas.errors import DsasWarning, MissingExtraError, OptionError
from dsas.model import loading
from dsas.model.loading import find_device, load_model, load_pipeline
from dsas.testing import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model: Any = tiny_model(layers=1)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_model_in_a_folder_is_loaded_with_its_tokenizer_in_evaluation_mode(folder: Path) -> None:
    loaded = load_model(str(folder), device="cpu")
    ids = torch.tensor([loaded.tokenizer("hello")["input_ids"]])
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert torch.equal(logits_of(loaded.model, ids), logits_of(tiny_model(layers=1), ids))


def test_a_model_that_sees_is_loaded_whole_with_its_processor_and_without_one_reads_texts(tmp_path: Path) -> None:
    seeing = llava()
    seeing.model.save_pretrained(tmp_path)  # type: ignore
    seeing.processor.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    assert (type(loaded.model), type(loaded.tokenizer)) == (type(seeing.model), type(seeing.processor))
    (tmp_path / "processor_config.json").write_text('{"processor_class": "NoSuchProcessor"}')
    for file in ("preprocessor_config.json", "tokenizer_config.json"):
        (tmp_path / file).unlink(missing_ok=True)
    with pytest.warns(DsasWarning, match="so only texts are read"):
        assert load_model(str(tmp_path), device="cpu").tokenizer("hello")["input_ids"]


def test_a_model_that_writes_down_speech_is_loaded_with_both_sides_and_its_processor(tmp_path: Path) -> None:
    hearing = whisper()
    hearing.model.save_pretrained(tmp_path)  # type: ignore
    hearing.processor.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    assert (type(loaded.model), type(loaded.tokenizer)) == (type(hearing.model), type(hearing.processor))


def test_a_model_with_an_encoder_is_loaded_with_both_sides(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 257}
    T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert type(load_model(str(tmp_path), device="cpu").model) is T5ForConditionalGeneration


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_the_precision_asked_for_is_that_of_every_parameter(folder: Path, precision: Any) -> None:
    model = load_model(str(folder), device="cpu", precision=precision).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, precision)}


@pytest.mark.parametrize(
    ("features", "stored", "expected"),
    [
        ("sse avx2", torch.bfloat16, torch.float32),
        ("sse avx2 avx512_bf16", torch.bfloat16, torch.bfloat16),
        ("avx512f amx_bf16 amx_tile", torch.bfloat16, torch.bfloat16),
        ("asimd bf16", torch.bfloat16, torch.bfloat16),
        ("avx2 avx512_bf16", torch.float16, torch.float32),
        ("avx2 avx512_fp16", torch.float16, torch.float16),
        ("avx2 avx512_bf16", torch.float32, torch.float32),
    ],
)
def test_auto_keeps_a_half_precision_only_where_the_processor_has_instructions_for_it(
    features: str, stored: torch.dtype, expected: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cpuinfo").write_text(f"model name\t: some CPU with no such thing\nflags\t\t: {features}\n")
    monkeypatch.setattr(loading, "CPU_INFO", folder / "cpuinfo")
    tiny_model(layers=1).to(stored).save_pretrained(folder)
    model = load_model(str(folder), device="cpu").model
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    asked = load_model(str(folder), device="cpu", precision="bfloat16").model
    assert asked.dtype == torch.bfloat16


def test_where_nothing_tells_the_features_of_the_processor_a_half_precision_is_taken_as_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "CPU_INFO", tmp_path / "none")
    assert not loading.fast_on_this_cpu(torch.bfloat16)
    assert loading.fast_on_this_cpu(torch.float32)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "/no/such/file.gguf"])
def test_what_is_no_model_is_refused_by_name_and_says_what_is_expected(name: str) -> None:
    with pytest.raises(OptionError, match=rf"no model could be loaded from '{name}' \(expected a folder with"):
        load_model(name, device="cpu")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no model could be loaded from"):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model.safetensors", lambda own: own[: len(own) // 2]),  # a download that was cut off
        ("model.safetensors", lambda own: b""),
        ("config.json", lambda own: own[: len(own) // 2]),
        ("config.json", lambda own: own.replace(b'"hidden_size": 32', b'"hidden_size": 48')),
        ("config.json", lambda own: own.replace(b'"hidden_size": 32', b'"hidden_size": "wide"')),
        ("config.json", lambda own: own.replace(b'"num_attention_heads": 4', b'"num_attention_heads": 0')),
        ("tokenizer.json", lambda own: own[: len(own) // 2]),
    ],
    ids=["cut weights", "no weights", "cut config", "width", "no width", "no heads", "cut tokenizer"],
)
def test_a_folder_with_a_damaged_file_ends_in_one_error_of_ours(
    folder: Path, tmp_path: Path, file: str, change: Callable[[bytes], bytes]
) -> None:
    copied = tmp_path / "damaged"
    shutil.copytree(folder, copied)
    (copied / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(OptionError, match=r"no model could be loaded from .*damaged"):
        load_model(str(copied), device="cpu")


def test_an_unknown_precision_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"precision must be one of \('auto', 'float32'.*, got 'int8'"):
        unchecked(load_model)(str(folder), precision="int8")


@pytest.mark.parametrize(("rank", "expected"), [(None, "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")])
def test_of_the_processes_of_torchrun_each_has_a_gpu_of_its_own(
    rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda _, device: SimpleNamespace(device=torch.device(device)))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert find_device("auto") == torch.device(expected)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_gguf_file_without_its_readers_says_which_extra_brings_them(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gguf", "accelerate"):
        monkeypatch.setitem(__import__("sys").modules, name, None if name == package else torch)
    with pytest.raises(MissingExtraError, match=rf"'{package}' is not installed.*pip install 'dsas\[gguf\]'"):
        load_model("model.gguf", device="cpu")


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_all_parts_of_a_pipeline_have_the_number_format_in_which_it_is_stored_where_the_cpu_is_fast_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype
) -> None:
    pytest.importorskip("diffusers")
    from dsas.testing.pipelines import tiny_pipeline

    tiny_pipeline("sd").to(stored).save_pretrained(tmp_path / "pipeline")
    for said, expected in (("", torch.float32), ("avx512_fp16 avx512_bf16", stored)):
        (tmp_path / "cpuinfo").write_text(said)
        monkeypatch.setattr(loading, "CPU_INFO", tmp_path / "cpuinfo")
        loaded = load_pipeline(str(tmp_path / "pipeline"), device="cpu")
        parts = [part for part in loaded.components.values() if isinstance(part, torch.nn.Module)]
        assert {parameter.dtype for part in parts for parameter in part.parameters()} == {expected}
        if expected == torch.float32:  # as stored in parts, it would not run
            loaded(["a dog"], num_inference_steps=1, height=16, width=16, output_type="latent")
