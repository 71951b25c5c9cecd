"""A rule becomes a row by what its methods say of themselves; what a server cannot do is refused by name and reason."""

from typing import Any

import pytest
import torch
from makers import random_steering
from torch import Tensor

import dsas
from dsas.errors import ModelMismatchError, OptionError
from dsas.methods.affine_edit import AffineEdit
from dsas.methods.served_form import Neurons, Projection, PromptCondition
from dsas.serving.rule_rows import Row, check_model, check_width, row_of, rows_of
from dsas.testing.models import WIDTH, tiny_model

SITE = dsas.Site("block")


def vector() -> Tensor:
    return torch.randn(WIDTH)


def with_wrong(name: str, wrong: Tensor) -> Row:
    """Return a row whose vector of this name is another."""
    affine = AffineEdit(*[vector() for _ in range(4)])
    row = Row(affine, (vector(),), (vector(),), (Projection(vector(), torch.tensor(0.0)),))
    others = {"reads": (wrong,), "writes": (wrong,), "projections": (Projection(wrong, torch.tensor(0.0)),)}
    others["neurons"] = (Neurons(vector(), wrong, vector()),)
    if name == "prompt":
        return row._replace(prompt=PromptCondition(wrong, torch.tensor(0.0), above=True))
    if name in others:
        return row._replace(**{name: others[name]})
    return row._replace(affine=affine._replace(**{name: wrong}))


@pytest.mark.parametrize(
    "name", ["offset", "slope", "low", "high", "reads", "writes", "projections", "neurons", "prompt"]
)
def test_a_row_with_any_vector_of_another_width_is_refused(name: str) -> None:
    check_width("block", with_wrong(name, vector()), WIDTH)
    for wrong in (torch.ones(WIDTH - 1), torch.ones(1), torch.ones(2, WIDTH)):
        with pytest.raises(ModelMismatchError, match=rf"at block its \w+ has shape .*, the site is {WIDTH} wide"):
            check_width("block", with_wrong(name, wrong), WIDTH)


def test_a_method_that_cannot_be_served_is_refused_by_name_with_its_own_reason() -> None:
    cast, constant = dsas.Cast(vector(), torch.tensor(0.1)), dsas.Constant()
    evidence = dsas.Evidence(vector(), torch.tensor(0.0), torch.tensor(0.0))
    addition = dsas.Addition(vector())
    refused: list[tuple[dsas.Transform, dsas.Regulator, str]] = [
        (dsas.Custom(torch.neg), constant, "transform 'custom' at block cannot be served: it is code"),
        (addition, dsas.Clean(evidence), "regulator 'clean' at block cannot be served: it reads tokens without"),
        (addition, dsas.PerStep([constant]), "regulator 'per-step' at block cannot be served: it steers denoisers"),
        (addition, dsas.Schedule("denoising"), "regulator 'schedule' at block cannot be served: a server of language"),
        (
            addition,
            dsas.Product([constant, dsas.Clean(evidence)]),
            "'product' at block .* its factor 'clean' cannot be",
        ),
        (addition, dsas.Product([cast, cast]), "regulator 'product' at block .* two of its factors decide by the mean"),
        (addition, dsas.Product([evidence, evidence]), "regulator 'product' at block .* two of its factors accumulate"),
    ]
    for transform, regulator, said in refused:
        with pytest.raises(OptionError, match=said):
            row_of(dsas.Rule(SITE, transform, regulator))


def test_a_method_of_another_package_is_served_by_what_it_says_of_itself_and_refused_without() -> None:
    class Half(dsas.Regulator):
        name = "half"

        @classmethod
        def fit(cls, source: Any, control: Any, target: Any) -> Any:
            raise NotImplementedError

        def forward(self, t: Tensor, forward_pass: Any) -> Tensor:
            return torch.full((*t.shape[:2], 1), 0.5)

    class Served(Half):
        def served_form(self) -> Any:
            return dsas.Constant(0.5).served_form()

    addition = dsas.Addition(vector())
    assert row_of(dsas.Rule(SITE, addition, Served(), 0.5)).factor == 0.25
    with pytest.raises(OptionError, match="regulator 'half' at block cannot be served: its class has no method served"):
        row_of(dsas.Rule(SITE, addition, Half()))


def test_rows_that_ask_the_same_of_places_share_a_number() -> None:
    model, addition = tiny_model("llama"), dsas.Addition(vector())
    paths = [f"model.layers.{number}" for number in range(3)]
    regulators = [dsas.Schedule("prompt"), dsas.Schedule("generated"), dsas.Schedule("prompt")]
    rules = [dsas.Rule(dsas.Site(path), addition, one) for path, one in zip(paths, regulators, strict=True)]
    rules.append(dsas.Rule(dsas.Site("model.norm"), addition, dsas.Constant()))
    rows = rows_of(dsas.Steering(rules, dsas.model.identity.ModelIdentity.of(model)))
    assert [row.place for row in rows.values()] == [1, 2, 1, 0]


@pytest.mark.parametrize("site", [dsas.Site("a", index=1), dsas.Site("a", side="input"), dsas.Site("a", parts=2)])
def test_a_site_that_is_no_whole_first_output_is_refused(site: dsas.Site) -> None:
    with pytest.raises(OptionError, match="whole first output"):
        row_of(dsas.Rule(site, dsas.Addition(vector()), dsas.Constant()))


def test_a_rule_of_weight_zero_has_no_row_and_so_no_reason_to_be_refused() -> None:
    model = tiny_model("llama")
    kept = random_steering(model, "residual").rules[0]
    dropped = dsas.Rule(dsas.Site("lm_head"), dsas.Custom(torch.neg), dsas.Constant(), weight=0.0)
    steering = dsas.Steering([kept, dropped], dsas.model.identity.ModelIdentity.of(model))
    assert list(rows_of(steering)) == [kept.site.path]


def test_another_kind_of_model_is_refused_with_every_difference() -> None:
    steering = random_steering(tiny_model("llama"))
    check_model(steering, "LlamaForCausalLM", WIDTH, 3)
    with pytest.raises(ModelMismatchError, match="class 'LlamaForCausalLM' here, 'Qwen2ForCausalLM' served; depth 3 "):
        check_model(steering, "Qwen2ForCausalLM", WIDTH, 4)


def test_a_model_that_contains_the_decoder_is_of_its_kind() -> None:
    steering = random_steering(tiny_model("gemma3"))
    for served in ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"):
        check_model(steering, served, WIDTH, 3)
    with pytest.raises(ModelMismatchError, match="class 'Gemma3ForCausalLM' here, 'Gemma2ForCausalLM' served"):
        check_model(steering, "Gemma2ForCausalLM", WIDTH, 3)
