"""A row for each Steering gives every token what `Steering.apply` gives it, in any mix; the rest is refused by name."""

import pytest
import torch
from torch import Tensor, nn

import dsas
from dsas.errors import OptionError
from dsas.methods.served_form import Adding
from dsas.serving.parts import Parts
from dsas.serving.rule_rows import row_of
from dsas.serving.tables import SiteTable
from dsas.testing.models import WIDTH

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


def transform_of(name: str) -> dsas.Transform:
    bounded = dsas.TRANSFORMS["linear-act"].fit(torch.randn(12, WIDTH), torch.randn(9, WIDTH) + 1)
    first, second = torch.linalg.qr(torch.randn(WIDTH, 2)).Q.T
    return {
        "caa": dsas.Addition(vector()),
        "lineas": dsas.Lineas(1 + vector(), vector()),
        "linear-act": bounded,
        "ablation": dsas.Ablation(first, torch.tensor(0.7)),
        "rotation": dsas.Rotation(first, second, torch.tensor(2.1)),
    }[name]


def regulator_of(name: str) -> dsas.Regulator:
    bias = torch.tensor(0.3)
    if "*" in name:
        return dsas.Product([regulator_of(one) for one in name.split("*")])
    return {
        "constant": dsas.Constant(0.7),
        "logistic": dsas.Logistic(0.3 * vector(), bias),
        "rectified": dsas.Rectified(0.3 * vector(), bias),
        "mera": dsas.Mera(0.3 * vector(), bias),
        "halfspace": dsas.HalfSpace(vector(), torch.tensor(0.4)),
        "posterior": dsas.Posterior(vector(), vector(), vector()),
    }[name]


TRANSFORMS = ("caa", "lineas", "linear-act", "ablation", "rotation")
REGULATORS = (
    *("constant", "logistic", "rectified", "mera", "halfspace", "posterior"),
    *("logistic*posterior", "halfspace*constant*rectified", "posterior*posterior*logistic"),
)


def rule_of(transform: str, regulator: str, weight: float = 1.0) -> dsas.Rule:
    return dsas.Rule(SITE, transform_of(transform), regulator_of(regulator), weight)


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
    table, count = filled(rules), 120
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
    t, everyone = 100 * torch.randn(len(rules), WIDTH), torch.arange(len(rules)) + 1
    table = filled(rules)
    assert torch.equal(t + table(t, torch.zeros_like(everyone), torch.ones(len(rules)))[0], t)
    assert torch.equal(t + table(t, everyone, torch.zeros(len(rules)))[0], t)


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
    kinds += [("ablation", "constant"), ("rotation", "constant"), ("caa", "halfspace*logistic"), ("caa", "posterior")]
    rows = [row_of(rule_of(*kind)) for kind in kinds]
    adding = rows[3].projections[0]._replace(adding=Adding(4.0, 0.0, 0.9))
    placed = row_of(dsas.Rule(SITE, dsas.Addition(vector()), dsas.Schedule("prompt")))
    cast = row_of(dsas.Rule(SITE, dsas.Addition(vector()), dsas.Cast(vector(), torch.tensor(0.1))))
    parts = [Parts.of([row]) for row in [*rows, rows[3]._replace(projections=(adding,)), placed, cast]]
    assert parts == [
        Parts(), Parts(slope=1), Parts(slope=1, support=1), Parts(projections=1), Parts(reads=1), Parts(reads=2),
        Parts(projections=2, step=1), Parts(neurons=1), Parts(projections=1, evidence=1), Parts(places=1),
        Parts(prompt=1),
    ]  # fmt: skip
    assert [SiteTable(1, WIDTH, part).rows[0].nbytes for part in parts] == [
        4 * WIDTH + 4, 8 * WIDTH + 4, 16 * WIDTH + 4, 8 * WIDTH + 12, 12 * WIDTH + 4, 20 * WIDTH + 4,
        12 * WIDTH + 20, 16 * WIDTH + 4, 8 * WIDTH + 24, 4 * WIDTH + 8, 8 * WIDTH + 12,
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


def test_what_is_told_of_a_token_is_its_regulator_times_the_weight_averaged_over_neurons() -> None:
    rules = [rule_of("caa", regulator, weight=0.6) for regulator in REGULATORS]
    t, everyone = torch.randn(len(rules), WIDTH), torch.arange(len(rules)) + 1
    _, told = filled(rules)(t, everyone, torch.full((len(rules),), 2.0))
    for rule, one, value in zip(rules, t, told, strict=True):
        wanted = 0.6 * rule.regulator(one[None, None], dsas.ForwardPass(1, 1)).mean()
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)
