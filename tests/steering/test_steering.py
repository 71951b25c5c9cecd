"""Steering: its report, its picture, strengths that are refused, and the hub, which here is a folder."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from makers import logits_of, random_steering, unchecked

import dsas
from dsas.errors import ArtifactError, OptionError, StateError, StrengthError
from dsas.model.identity import ModelIdentity
from dsas.model.strength import per_row, read_strength
from dsas.steering.folder import CARD, CONFIG, TENSORS
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH
from dsas.testing.passes import padded

IDENTITY = ModelIdentity("LlamaForCausalLM", WIDTH, 3, "0" * 16)
ROWS = [torch.arange(5, 14), torch.arange(20, 24), torch.arange(30, 36)]


@pytest.fixture
def model() -> Any:
    return tiny_model()


def rule(path: str, weight: float = 1.0, accuracy: float | None = None) -> dsas.Rule:
    return dsas.Rule(dsas.Site(path), dsas.Addition(torch.ones(WIDTH)), dsas.Constant(), weight, accuracy)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_report_counts_tokens_whose_regulator_is_above_one_half_whatever_the_strength(
    model: Any, weight: float
) -> None:
    site = "model.layers.0.self_attn"  # the first thing steered: so its input is that of the plain model
    steering = random_steering(model, site, weight=weight)
    strengths, seen = [0.2, 0.0, 3.0], []
    inputs = padded(ROWS, "left", 0)
    handle = model.get_submodule(site).register_forward_hook(lambda _m, _i, output: seen.append(output[0]))
    logits_of(model, inputs["input_ids"], attention_mask=inputs["attention_mask"])
    handle.remove()
    with steering.apply(model, strengths) as applied:
        logits_of(model, inputs["input_ids"], attention_mask=inputs["attention_mask"])

    regulator, real = steering.rules[0].regulator, inputs["attention_mask"].bool().numpy()
    theta, bias = (regulator.get_buffer(name).double().numpy() for name in ("theta", "bias"))
    gate = 1 / (1 + np.exp(-(seen[0].double().numpy() @ theta + bias))) * real
    (line,) = applied.report()
    assert line.hits == int((gate[[0, 2]] > 0.5).sum()) > 0
    expected = (gate * np.array(strengths)[:, None]).sum() * weight / real.sum()
    assert line.mean_strength == pytest.approx(expected, rel=1e-4)


def test_the_report_says_of_every_site_whether_it_is_steered_and_why_not(model: Any) -> None:
    rules = [rule("model.layers.0", 1.0, 0.9), rule("model.layers.1", 0.0, 0.62), rule("model.layers.2", 0.0)]
    steering = dsas.Steering(rules, ModelIdentity.of(model))
    statuses = [
        "steered",
        "not steered: not selected, with a held-out accuracy of 0.62",
        "not steered: its weight is 0",
    ]
    with steering.apply(model, 2.0) as applied:
        before = applied.report()
        logits_of(model, torch.tensor([[1, 2, 3]]))
    fitted, after = steering.report(), applied.report()
    assert [(line.accuracy, line.status) for line in fitted] == list(zip([0.9, 0.62, None], statuses, strict=True))
    assert [line.status for line in before] == ["nothing was recorded yet", *statuses[1:]]
    assert [line.status for line in after] == statuses
    assert [(line.mean_strength, line.hits) for line in before] == [(None, None)] * 3
    assert [(line.mean_strength, line.hits) for line in after] == [(2.0, 3), (None, None), (None, None)]


def test_after_strength_0_the_report_has_nothing_to_report(model: Any) -> None:
    steering = random_steering(model)
    with steering.apply(model, 0.0) as applied:
        logits_of(model, torch.tensor([[1, 2, 3]]))
    assert all(line.hits is None for line in applied.report())
    with pytest.raises(StateError, match="nothing was recorded"):
        applied.trace()
    with steering.apply(model, record=False) as applied:
        logits_of(model, torch.tensor([[1, 2, 3]]))
    with pytest.raises(StateError, match="recording is off: apply the steering with record=True"):
        applied.trace()


def test_the_picture_has_one_line_a_site_with_how_when_weight_and_accuracy() -> None:
    steering = dsas.Steering([rule("layers.0", 0.5, 0.75), rule("layers.1"), rule("layers.2", 0.0, 0.6)], IDENTITY)
    line = "Addition(vector=<tensor 32>) x Constant(value=1.0)"
    assert repr(steering).splitlines() == [
        "Steering for LlamaForCausalLM: 2 of 3 sites steered",
        f"  layers.0 -> {line}, weight 0.50, accuracy 0.75",
        f"  layers.1 -> {line}",
        f"  layers.2 -> {line}, weight 0.00, accuracy 0.60",
    ]


@pytest.mark.parametrize("rules", [[], [rule("layers.0"), rule("layers.1"), rule("layers.0")]])
def test_no_rule_and_two_rules_for_one_site_are_refused(rules: list[dsas.Rule]) -> None:
    with pytest.raises(OptionError, match="at least one rule and one rule per site, got sites"):
        dsas.Steering(rules, IDENTITY)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (float("nan"), "must be finite, got nan"),
        ([1.0, -float("inf")], "must be finite, got .*-inf"),
        (1e39, "must be finite"),
        ([], r"one number or one per row, got shape \(0,\)"),
        ([[1.0, 2.0]], r"one number or one per row, got shape \(1, 2\)"),
        ([[1.0], [2.0, 3.0]], "one number or one per row, got .*2.0, 3.0"),
        ("strong", "one number or one per row, got 'strong'"),
        (None, "one number or one per row, got None"),
        (1 + 2j, "one number or one per row, got"),
    ],
)
def test_a_strength_that_means_nothing_is_refused(strength: Any, message: str) -> None:
    with pytest.raises(StrengthError, match=message):
        unchecked(read_strength)(strength)


@pytest.mark.parametrize(
    "strength", [1, 1.0, True, np.float32(1), np.ones(2), [1, 1], (1.0, 1.0), torch.ones(2).half()]
)
def test_numbers_of_every_kind_are_strengths(strength: Any) -> None:
    value = unchecked(read_strength)(strength)
    assert value.dtype == torch.float32
    assert bool((value == 1).all())


def test_strengths_that_do_not_divide_the_batch_are_refused_when_the_model_runs(model: Any) -> None:
    steering = random_steering(model)
    message = "2 strengths were given but the batch has 3 rows; give one, or 3"
    with pytest.raises(StrengthError, match=message), steering.apply(model, [1.0, 2.0]):
        logits_of(model, torch.ones(3, 4, dtype=torch.long))
    assert per_row(torch.tensor([1.0, 2.0]), 6).tolist() == [1, 1, 1, 2, 2, 2]
    assert per_row(torch.tensor([1.0, 2.0]), 8, copies=2).tolist() == [1, 1, 2, 2, 1, 1, 2, 2]
    with pytest.raises(StrengthError, match="2 strengths were given but the batch has 3 rows"):
        per_row(torch.tensor([1.0, 2.0]), 6, copies=2)


def test_installing_twice_is_refused_and_removing_twice_is_harmless(model: Any) -> None:
    applied = random_steering(model).apply(model).install()
    with pytest.raises(StateError, match="already installed"):
        applied.install()
    applied.remove()
    applied.remove()
    with applied:  # and it can be used again
        assert not torch.equal(logits_of(model, torch.tensor([[1]])), plain_logits(model))


def plain_logits(model: Any) -> torch.Tensor:
    return logits_of(tiny_model(), torch.tensor([[1]]))


class Hub(huggingface_hub.HfApi):
    """Records what is uploaded instead of uploading it."""

    uploaded: dict[str, Any]

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        pass

    def create_repo(self, repo_id: str, **_options: Any) -> Any:  # type: ignore
        return type("Repository", (), {"repo_id": f"someone/{repo_id}"})()

    def upload_folder(self, *, repo_id: str, folder_path: Any, **_options: Any) -> Any:  # type: ignore
        files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        type(self).uploaded = {"repo_id": repo_id, "files": files}
        return f"https://hub/{repo_id}/commit/1"


def test_what_is_pushed_to_the_hub_is_what_is_saved_and_can_be_loaded_by_its_id(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Hub)
    steering = random_steering(model)
    address = steering.save_pretrained(tmp_path / "detox", push_to_hub=True)
    assert str(address) == "https://hub/someone/detox/commit/1"
    saved = {file.name: file.read_bytes() for file in (tmp_path / "detox").iterdir()}
    assert Hub.uploaded == {"repo_id": "someone/detox", "files": saved}
    assert set(saved) == {CONFIG, TENSORS, CARD}
    steering.push_to_hub("other")
    assert Hub.uploaded == {"repo_id": "someone/other", "files": saved}

    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "detox")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    again = dsas.Steering.from_pretrained("someone/detox", revision="v1", token="secret")
    assert again.digest() == steering.digest()
    wanted = {"revision": "v1", "allow_patterns": [CONFIG, TENSORS, CARD], "token": "secret"}
    assert asked == [("someone/detox", wanted)]


@pytest.mark.parametrize("name", ["no/such-steering", "./neither a folder nor an id"])
def test_what_is_neither_a_folder_nor_on_the_hub_is_refused_by_name(name: str) -> None:
    with pytest.raises(ArtifactError, match=rf"'{name}' is neither a local folder nor a readable hub id"):
        dsas.Steering.from_pretrained(name)


def test_the_card_has_front_matter_the_lines_of_use_the_settings_and_the_picture(model: Any, tmp_path: Path) -> None:
    plain = random_steering(model)
    steering = dsas.Steering(plain.rules, plain.model, {"texts": {"source": 6}, "selection": "all"})
    steering.save_pretrained(tmp_path)
    card = (tmp_path / CARD).read_text()
    metadata = huggingface_hub.ModelCard(card).data
    assert metadata.library_name == "dsas"
    for part in ("with steering.apply(model):", "- texts: source 6", "- selection: all", repr(steering)):
        assert part in card
    assert dsas.Steering.from_pretrained(tmp_path).settings == steering.settings


def test_the_digest_changes_with_what_is_done_and_not_with_what_is_said_about_it(model: Any) -> None:
    steering = random_steering(model)
    same = dsas.Steering(steering.rules, steering.model, {"note": "hello"})
    weaker = dsas.Steering([rule._replace(weight=0.5) for rule in steering.rules], steering.model)
    other = random_steering(model, transform=dsas.Addition(torch.ones(WIDTH)))
    assert same.digest() == steering.digest()
    assert len({steering.digest(), weaker.digest(), other.digest()}) == 3


def test_a_digest_is_over_the_fields_a_site_of_texts_always_had(tmp_path: Path) -> None:
    steering = random_steering(tiny_model())
    steering.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["rules"][0]["site"]
    assert set(stored) == {"path", "index", "side", "part", "parts"}
