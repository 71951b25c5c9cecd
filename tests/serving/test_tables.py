"""A row for each Steering gives every token what `Steering.apply` gives it, in any mix; the rest is refused by name."""

from typing import Any

import pytest
import torch
from makers import random_steering
from torch import Tensor, nn

import dsas
from dsas.errors import ModelMismatchError, OptionError
from dsas.serving.tables import Adding, Parts, SiteTable, check_model, check_width, row_of, rows_of
from dsas.testing.models import WIDTH, tiny_model

SITE = dsas.Site("block")


class Block(nn.Module):
    """A model of one module that gives what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.block(inputs_embeds)


def vector() -> Tensor:
    return torch.randn(WIDTH)


def affine(name: str) -> dsas.Transform:
    bounded = dsas.TRANSFORMS["linear-act"].fit(torch.randn(12, WIDTH), torch.randn(9, WIDTH) + 1)
    return {"caa": dsas.Addition(vector()), "lineas": dsas.Lineas(1 + vector(), vector()), "linear-act": bounded}[name]


def gate(name: str) -> dsas.Regulator:
    bias = torch.tensor(0.3)
    return {
        "constant": dsas.Constant(0.7),
        "logistic": dsas.Logistic(0.3 * vector(), bias),
        "rectified": dsas.Rectified(0.3 * vector(), bias),
        "mera": dsas.Mera(0.3 * vector(), bias),
    }[name]


TRANSFORMS, REGULATORS = ("caa", "lineas", "linear-act"), ("constant", "logistic", "rectified", "mera")


def rule_of(transform: str, regulator: str, weight: float = 1.0) -> dsas.Rule:
    return dsas.Rule(SITE, affine(transform), gate(regulator), weight)


def steered_by_apply(rule: dsas.Rule, t: Tensor, strength: float) -> Tensor:
    model = Block()
    steering = dsas.Steering([rule], dsas.model.identity.ModelIdentity.of(model))
    with steering.apply(model, strength, record=False):
        return model(inputs_embeds=t)


def filled(rules: list[dsas.Rule]) -> SiteTable:
    rows = [row_of(rule) for rule in rules]
    table = SiteTable(len(rows), WIDTH, Parts.of(rows))
    for slot, row in enumerate(rows, 1):
        table.put(slot, row)
    return table


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("regulator", REGULATORS)
def test_a_row_steers_as_apply_does(transform: str, regulator: str) -> None:
    rule, t = rule_of(transform, regulator, weight=0.6), torch.randn(7, WIDTH)
    edit, _ = filled([rule])(t, torch.ones(7, dtype=torch.int64), torch.full((7,), 1.3))
    torch.testing.assert_close(t + edit, steered_by_apply(rule, t[None], 1.3)[0], rtol=0, atol=1e-5)


def test_every_token_gets_its_own_row_and_strength() -> None:
    rules = [rule_of(transform, regulator) for transform in TRANSFORMS for regulator in REGULATORS]
    table, count = filled(rules), 60
    t, slots = torch.randn(count, WIDTH), torch.randint(0, len(rules) + 1, (count,))
    strengths = 2 * torch.rand(count)
    steered = t + table(t, slots, strengths)[0]
    for number, slot in enumerate(slots.tolist()):
        one = t[number]
        if slot:
            one = steered_by_apply(rules[slot - 1], one[None, None], float(strengths[number]))[0, 0]
        torch.testing.assert_close(steered[number], one, rtol=0, atol=1e-5)


def test_slot_zero_and_strength_zero_change_no_bit() -> None:
    rules = [rule_of(transform, regulator) for transform in TRANSFORMS for regulator in REGULATORS]
    t, everyone = 100 * torch.randn(12, WIDTH), torch.arange(12) + 1
    table = filled(rules)
    assert torch.equal(t + table(t, torch.zeros_like(everyone), torch.ones(12))[0], t)
    assert torch.equal(t + table(t, everyone, torch.zeros(12))[0], t)


def test_a_leading_dimension_changes_nothing() -> None:
    table, t = filled([rule_of("lineas", "logistic")]), torch.randn(5, WIDTH)
    slots, strengths = torch.tensor([0, 1, 1, 0, 1]), torch.rand(5)
    assert torch.equal(table(t[None], slots, strengths)[0][0], table(t, slots, strengths)[0])


def test_a_constant_regulator_among_others_is_exact() -> None:
    addition = dsas.Addition(vector())
    table = filled([dsas.Rule(SITE, addition, dsas.Constant(1.0)), rule_of("caa", "logistic")])
    edit, _ = table(torch.randn(1, WIDTH), torch.tensor([1]), torch.ones(1))
    assert torch.equal(edit[0], addition.vector)


def test_columns_are_made_only_where_a_row_needs_them() -> None:
    kinds = [("caa", "constant"), ("lineas", "constant"), ("linear-act", "constant"), ("caa", "logistic")]
    rows = [row_of(rule_of(*kind)) for kind in kinds]
    parts = [Parts.of([row]) for row in [*rows, rows[-1]._replace(adding=Adding(4.0, 0.0, 0.9))]]
    bare, adding = Parts(gate=True), Parts(gate=True, evidence=True)
    assert parts == [Parts(), Parts(slope=True), Parts(slope=True, support=True), bare, adding]
    assert [SiteTable(1, WIDTH, part).rows[0].nbytes for part in parts] == [
        4 * WIDTH + 4, 8 * WIDTH + 4, 16 * WIDTH + 4, 8 * WIDTH + 12, 8 * WIDTH + 24,
    ]  # fmt: skip


def test_writing_a_row_keeps_the_address() -> None:
    table = filled([rule_of("linear-act", "logistic")])
    before = table.rows.data_ptr()
    table.put(1, row_of(rule_of("caa", "constant")))
    assert table.rows.data_ptr() == before


def test_a_row_that_needs_a_missing_column_is_refused() -> None:
    table = filled([rule_of("caa", "constant")])
    with pytest.raises(OptionError, match=r"no Steering had when the server started \(slope, support\)"):
        table.put(1, row_of(rule_of("linear-act", "constant")))


@pytest.mark.parametrize("name", ["offset", "slope", "low", "high", "theta"])
def test_a_row_with_any_vector_of_another_width_is_refused(name: str) -> None:
    row = row_of(rule_of("linear-act", "logistic"))
    check_width("block", row, WIDTH)
    for wrong in (torch.ones(WIDTH - 1), torch.ones(1), torch.ones(2, WIDTH)):
        other = row._replace(edit=row.edit._replace(**{name: wrong}))
        with pytest.raises(ModelMismatchError, match=rf"at block its {name} has shape .*, the site is {WIDTH} wide"):
            check_width("block", other, WIDTH)


@pytest.mark.parametrize("name", ["ablation", "rotation", "custom"])
def test_a_transform_that_is_not_affine_is_refused_by_name(name: str) -> None:
    unit = torch.nn.functional.normalize(vector(), dim=0)
    transforms: dict[str, Any] = {
        "ablation": dsas.Ablation(unit, torch.tensor(0.0)),
        "rotation": dsas.Rotation(unit, unit, torch.tensor(0.1)),
        "custom": dsas.Custom(torch.neg),
    }
    with pytest.raises(OptionError, match=f"transform '{name}' at block cannot be served: expected an affine one"):
        row_of(dsas.Rule(SITE, transforms[name], dsas.Constant()))


@pytest.mark.parametrize("name", ["cast", "schedule", "posterior", "halfspace", "product"])
def test_a_regulator_that_sees_more_than_one_projection_of_a_token_is_refused_by_name(name: str) -> None:
    regulators: dict[str, Any] = {
        "cast": dsas.Cast(vector(), torch.tensor(0.1)),
        "schedule": dsas.Schedule("prompt"),
        "posterior": dsas.Posterior(vector(), vector(), vector()),
        "halfspace": dsas.HalfSpace(vector(), torch.tensor(0.0)),
        "product": dsas.Product([dsas.Constant(), dsas.Schedule("generated")]),
    }
    with pytest.raises(OptionError, match=f"regulator '{name}' at block cannot be served"):
        row_of(dsas.Rule(SITE, dsas.Addition(vector()), regulators[name]))


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
