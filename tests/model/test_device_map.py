"""Models spread by accelerate: layers on disk, rules beside the activations, and what says where a module computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from makers import hooks_on, ids_of, logits_of, random_steering, unchecked
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import dsas
from dsas.errors import MissingExtraError, OptionError
from dsas.evaluation.perplexity import perplexity
from dsas.model.device_map import device_of, stored
from dsas.model.identity import fingerprint
from dsas.model.loading import find_device, load_model, load_pipeline
from dsas.model.token_passes import TokenPasses
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

SOURCE, CONTROL, TARGET = ([f"{start} {n}" for n in range(6)] for start in ("SHUT UP", "the door", "thank you"))
SETS: dict[str, Any] = {"source": SOURCE, "control": CONTROL, "target": TARGET}
CPU, META = torch.device("cpu"), torch.device("meta")
CAST = dsas.Cast(torch.ones(WIDTH), torch.tensor(0.1))
ON_DISK = ["model.layers.1", "model.layers.2", "lm_head"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model: Any = tiny_model()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(params=["from_pretrained", "dispatch_model", "all on disk"])
def spread(request: pytest.FixtureRequest, folder: Path) -> Any:
    """The tiny model with parts of it on disk, between passes."""
    accelerate = pytest.importorskip("accelerate")
    parts = ["model.embed_tokens", *(f"model.layers.{n}" for n in range(3)), "model.norm", "lm_head"]
    kept = "disk" if request.param == "all on disk" else "cpu"
    where = {part: "disk" if part in ON_DISK else kept for part in parts} | {"model.rotary_emb": "cpu"}
    if request.param == "dispatch_model":
        away = folder / "away"
        return accelerate.dispatch_model(tiny_model(), where, main_device="cpu", offload_dir=str(away)).eval()
    return AutoModelForCausalLM.from_pretrained(folder, device_map=where, offload_folder=folder / "away").eval()


def on_disk(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


def test_a_model_on_disk_is_the_model_that_it_is_in_memory(spread: Any) -> None:
    assert "model.layers.1.mlp.up_proj.weight" in on_disk(spread)
    assert fingerprint(spread) == fingerprint(tiny_model())
    other = tiny_model()
    other.get_parameter("model.layers.1.mlp.up_proj.weight").data += 1
    assert fingerprint(spread) != fingerprint(other)
    for name, parameter in spread.named_parameters():
        assert torch.equal(stored(spread, name, parameter), tiny_model().get_parameter(name))


@pytest.mark.parametrize("incremental", [False, True])
def test_a_model_on_disk_is_fitted_to_the_same_bits(spread: Any, incremental: bool) -> None:
    plain, other = (
        dsas.fit(m, tiny_tokenizer(), **SETS, reading=dsas.Reading(incremental=incremental), progress=False)
        for m in (tiny_model(), spread)
    )
    assert other.digest() == plain.digest()
    assert other.model == plain.model


@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")  # transformers 5.6, of what is on disk
def test_a_model_on_disk_is_steered_to_the_same_bits_and_traced(spread: Any) -> None:
    plain, ids = tiny_model(), ids_of(tiny_tokenizer(), "hello there")
    steering = random_steering(plain, ["residual", "norm"])
    found = []
    for model in (plain, spread):
        with steering.apply(model, skip_sinks=True, record="doses") as applied:  # and no warning of other weights
            logits, strengths = logits_of(model, ids), applied.trace().strengths
            found.append((logits, strengths, model.generate(ids, max_new_tokens=4, do_sample=False)))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    means = [perplexity(model, tiny_tokenizer(), SOURCE).mean for model in (plain, spread)]
    assert means[1] == pytest.approx(means[0], rel=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_on_disk_is_trained_to_the_same_bits_and_left_as_it_was(spread: Any, checkpointing: bool) -> None:
    options = {
        **SETS,
        "objective": "e2e-dsas",
        "steps": 3,
        "sites": ["norm", "residual"],
        "running": dsas.Running(checkpointing=checkpointing, progress=False),
    }
    away = on_disk(spread)
    logits_of(spread, ids_of(tiny_tokenizer(), "hello"))  # transformers puts hooks of its own on at the first pass
    hooks = hooks_on(spread)
    plain, other = (dsas.train(m, tiny_tokenizer(), **options) for m in (tiny_model(), spread))
    assert other.digest() == plain.digest()
    assert on_disk(spread) == away
    assert hooks_on(spread) == hooks
    assert all(parameter.requires_grad for parameter in spread.parameters())


def test_workers_do_not_load_a_model_that_one_device_may_not_hold(spread: Any) -> None:
    spread.config._name_or_path = "here"
    with pytest.raises(OptionError, match="each worker loads the whole model on one device, but this one is spread"):
        dsas.fit(spread, tiny_tokenizer(), **SETS, reading=dsas.Reading(spread=dsas.Spread(workers=2)), progress=False)


class Halves(nn.Module):
    """A model that begins on one device and ends on another: "meta", which knows shapes and refuses to mix devices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, device=META)
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.outer = nn.ModuleDict({"inner": self.norm, "linear": self.second})

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        return self.second(self.norm(self.first(inputs_embeds).to(META)))


@pytest.mark.parametrize("regulator", [None, dsas.Schedule("prompt", 1), CAST])
@pytest.mark.parametrize("strength", [1.0, [0.5, 1.0]])
@pytest.mark.parametrize("skip_sinks", [False, True])
def test_every_rule_computes_where_its_sites_activation_is(
    regulator: Any, strength: Any, skip_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsas.runtime.edit.autocasts", lambda _: False)  # which knows no "meta"
    model, x = Halves(), torch.randn(2, 5, WIDTH)
    steering = random_steering(model, ["first", "second"], regulator=regulator)
    with steering.apply(model, strength, skip_sinks=skip_sinks):
        found = model(inputs_embeds=x, attention_mask=torch.ones(2, 5))
    assert (found.device, found.shape) == (META, x.shape)
    assert all(value.device == CPU for rule in steering.rules for value in rule.transform.buffers())


def test_positions_are_those_of_the_pass_on_whatever_device_they_are_asked_for() -> None:
    reader = TokenPasses(tiny_model())
    step = reader.read((), {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.ones(1, 3)})
    assert step is not None
    site, here = dsas.Site("model.layers.0"), torch.zeros(1, 3, WIDTH)
    there = reader.at(site, here.to(META), None)
    assert reader.at(site, here.to(META), None) is there
    assert reader.at(site, here, None) is step
    there.carry("count", torch.full((1, 3, 1), 3.0))
    for one in step.history.each:
        one.end()
    state = step.carried("count")
    assert state is not None
    assert state.tolist() == [[3.0]]
    assert (there.positions.device, step.positions.tolist()) == (META, [[0, 1, 2]])


def test_a_module_without_parameters_computes_where_the_next_around_it_does() -> None:
    model = Halves()
    assert device_of(model) == device_of(model, "first") == CPU
    assert device_of(model, "second") == device_of(model, "outer.inner") == META
    assert device_of(nn.Sequential(nn.ReLU()), "0") == CPU


def test_layers_may_be_spread_by_name_and_need_accelerate_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    asked, load = [], AutoModelForCausalLM.from_pretrained

    def from_pretrained(name: str, **options: Any) -> Any:
        asked.append(options.get("device_map"))
        return load(name, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    model = load_model(str(folder), device="balanced").model
    load_model(str(folder), device="cpu")
    assert asked == ["balanced", None]
    assert fingerprint(model) == fingerprint(tiny_model())
    assert find_device("balanced") == find_device("auto")
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"'accelerate' is not installed.*pip install 'dsas\[accelerate\]'"):
        load_model(str(folder), device="sequential")


def test_a_pipeline_is_not_spread() -> None:
    with pytest.raises(OptionError, match="a pipeline is loaded on one device, not 'balanced'"):
        unchecked(load_pipeline)("anything", device="balanced")
