"""Identity: the model a Steering was fitted on, a relative of it, and any other."""

import copy

import pytest
import torch
from makers import logits_of, random_steering
from torch import Tensor, nn

import dsas
from dsas.errors import DsasWarning, ModelMismatchError
from dsas.model import identity as identities
from dsas.model.identity import ModelIdentity, fingerprint
from dsas.testing import FAMILIES, tiny_model
from dsas.testing.models import LAYERS, WIDTH

IDS = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize("family", FAMILIES)
def test_width_and_depth_of_every_family_are_known(family: str) -> None:
    model = tiny_model(family)
    identity = ModelIdentity.of(model)
    assert (identity.model_class, identity.width, identity.depth) == (type(model).__name__, WIDTH, LAYERS)


def test_a_module_without_a_config_has_a_class_and_a_fingerprint() -> None:
    identity = ModelIdentity.of(nn.Linear(2, 3))
    assert (identity.model_class, identity.width, identity.depth) == ("Linear", 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_weights_in_float32_or_bfloat16_are_exactly_the_model(dtype: torch.dtype) -> None:
    model = tiny_model()
    steering, twin = random_steering(model), copy.deepcopy(model).to(dtype)
    assert steering.model.compare(ModelIdentity.of(twin)) == "exact"
    with steering.apply(twin):  # and no warning
        logits_of(twin, IDS)


def test_other_weights_of_the_same_shapes_are_steered_with_a_warning() -> None:
    steering, other = random_steering(tiny_model()), tiny_model(seed=1)
    assert steering.model.compare(ModelIdentity.of(other)) == "relative"
    with pytest.warns(DsasWarning, match="weights of this LlamaForCausalLM are not those"):
        applied = steering.apply(other)
    plain = logits_of(other, IDS)
    with applied:
        assert not torch.equal(logits_of(other, IDS), plain)


def test_one_changed_layer_is_enough_to_be_another_model() -> None:
    model = tiny_model()
    before = fingerprint(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.1)  # type: ignore
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"family": "gpt2"}, "model_class 'LlamaForCausalLM' here, 'GPT2LMHeadModel' in the model given"),
        ({"hidden_size": 64}, "width 32 here, 64 in the model given"),
        ({"layers": 2}, "depth 3 here, 2 in the model given"),
        ({"layers": 4, "hidden_size": 16}, "width 32 here, 16 in the model given; depth 3 here, 4 in"),
    ],
)
def test_another_kind_of_model_is_refused_and_everything_that_differs_is_said(other: dict, message: str) -> None:
    with pytest.raises(ModelMismatchError, match=message):
        random_steering(tiny_model()).apply(tiny_model(**other))


def test_a_model_that_lacks_a_site_is_refused_with_the_closest_name() -> None:
    model = tiny_model()
    rule = dsas.Rule(dsas.Site("model.layers.0.mpl"), dsas.Addition(torch.ones(WIDTH)), dsas.Constant())
    with pytest.raises(ModelMismatchError, match=r"no module 'model.layers.0.mpl' \(1 sites are missing\); .*0.mlp'"):
        dsas.Steering([rule], ModelIdentity.of(model)).apply(model)


def test_an_identity_is_rebuilt_by_its_own_values() -> None:
    identity = ModelIdentity.of(tiny_model())
    assert ModelIdentity(**identity.as_dict()) == identity


def test_weights_are_hashed_once_and_again_when_they_were_written_into_or_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls, hashed = tiny_model(), [], identities._hashed
    monkeypatch.setattr(identities, "_hashed", lambda *given: (calls.append(1), hashed(*given))[1])
    first = fingerprint(model)
    assert fingerprint(model) == first
    assert len(calls) == 1
    weight = model.get_parameter("lm_head.weight")
    with torch.no_grad():
        weight[0, 0] += 1.0
    written = fingerprint(model)
    weight.data = weight.data + 1.0  # as an adapter is merged
    assert len({first, written, fingerprint(model)}) == 3
    assert len(calls) == 3


class Standing(Tensor):
    """A tensor that stands for others and has no place of its own, as quantised and sharded ones do."""

    def data_ptr(self) -> int:
        raise RuntimeError("no storage")


def test_a_parameter_that_stands_for_other_tensors_is_not_asked_for_its_place() -> None:
    model = nn.Linear(2, 3)
    plain = fingerprint(model)
    model.weight = nn.Parameter(model.weight.detach().as_subclass(Standing))
    assert fingerprint(model) == plain


@pytest.mark.parametrize("fitted", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("run", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_weights_are_the_same_model_in_whichever_two_precisions(fitted: torch.dtype, run: torch.dtype) -> None:
    model = tiny_model()
    here, there = (ModelIdentity.of(copy.deepcopy(model).to(dtype)) for dtype in (fitted, run))
    assert here.compare(there) == "exact"


@pytest.mark.parametrize("change", [1e-2, 3e-3])
def test_weights_that_were_tuned_by_a_little_are_others_in_float16_too(change: float) -> None:
    model = tiny_model()
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.mul_(1 + change * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    assert ModelIdentity.of(model).compare(ModelIdentity.of(tuned.half())) == "relative"
