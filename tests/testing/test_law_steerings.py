"""A Steering that breaks a law on a model or a pipeline is told which one, in whatever way it acts."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from lawless import Counts, FirstRow, InPlace, OnItself, SeesPadding
from makers import Idle, random_steering
from pictures import drawn, steered_at
from torch import Tensor

import dsas
from dsas.errors import OptionError
from dsas.model.hooks import Hooks
from dsas.runtime.applied import Applied
from dsas.runtime.fuse import Fusion
from dsas.steering.composition import AppliedTogether
from dsas.testing import WAYS, LawBroken, check_pipeline, check_steering, tiny_model, tiny_pipeline, tiny_tokenizer
from dsas.testing.models import WIDTH
from dsas.testing.watch import Watch
from dsas.testing.ways import Way

PLACE = ["unet.mid_block.attentions.0"]


def draw(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    return drawn(pipeline, "sd", list(prompts), seeds=list(seeds))


def check_text(change: Callable[[dsas.Rule], dsas.Rule] = lambda rule: rule, *, way: str = "apply") -> None:
    """Check a Steering, or two that are composed, whose rules were changed."""
    model = tiny_model(layers=2)
    steering, other = random_steering(model), random_steering(model, seed=1)
    steering = dsas.Steering([change(rule) for rule in steering.rules], steering.model)
    acting: Any = other | steering if way == "composition" else steering
    kind: Any = "apply" if way == "composition" else way
    check_steering(acting, model, tiny_tokenizer(), prompts=("A fox ran", "Hi"), way=kind)


def check_picture(change: Callable[[dsas.Rule], dsas.Rule] = lambda rule: rule, *, way: Any = "apply") -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", PLACE)
    check_pipeline(dsas.Steering([change(rule) for rule in steering.rules], steering.model), pipeline, draw, way=way)


def when(kind: type[Any]) -> Callable[[dsas.Rule], dsas.Rule]:
    return lambda rule: rule._replace(regulator=kind(rule.regulator.get_buffer("theta") * 0.3))


def how(kind: type[Any]) -> Callable[[dsas.Rule], dsas.Rule]:
    return lambda rule: rule._replace(transform=kind(rule.transform.get_buffer("vector")))


@pytest.mark.parametrize("way", [*WAYS, "composition"])
@pytest.mark.parametrize("regulator", [FirstRow, Counts, SeesPadding])
def test_a_regulator_that_looks_past_its_row_is_caught_in_every_way(regulator: Any, way: str) -> None:
    with pytest.raises(LawBroken, match=r"^law 2 \("):
        check_text(when(regulator), way=way)


def test_a_regulator_that_keeps_its_state_on_itself_is_caught() -> None:
    with pytest.raises(LawBroken, match=r"^law 9 \("):
        check_text(when(OnItself))


@pytest.mark.parametrize("way", ["apply", "install", "composition"])
def test_a_transform_that_writes_into_an_activation_is_caught_wherever_it_can_be_seen(way: str) -> None:
    with pytest.raises(LawBroken, match=r"^law [13] \("):
        check_text(how(InPlace), way=way)


@pytest.mark.parametrize("way", WAYS)
def test_on_a_pipeline_a_regulator_that_looks_at_the_first_row_alone_is_caught_in_every_way(way: str) -> None:
    with pytest.raises(LawBroken, match=r"^law [12] \("):
        check_picture(when(FirstRow), way=way)


def test_on_a_pipeline_a_transform_that_writes_into_an_activation_is_caught() -> None:
    with pytest.raises(LawBroken, match=r"^law [13] \("):
        check_picture(how(InPlace))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.mul_(2.0), "the output of used was written into"),
        (lambda t: t.bfloat16(), "the output of used changed its dtype, shape or device"),
        (lambda t: t[:, :1], "the output of used changed its dtype, shape or device"),
    ],
    ids=["written into", "dtype", "shape"],
)
def test_a_watch_sees_what_is_done_to_an_output_between_the_module_and_the_next(change: Any, message: str) -> None:
    model = Idle()
    watch = Watch([dsas.Site("used"), dsas.Site("used", side="input")], model)
    model.used.register_forward_hook(lambda _module, _args, output: change(output))
    watch.look_after()

    def run() -> None:
        with torch.no_grad():
            model(inputs_embeds=torch.randn(1, 2, WIDTH))
        watch.check()

    with pytest.raises(LawBroken, match=rf"^law 3 \(.*{message}"):
        run()


@pytest.mark.parametrize(
    ("way", "owner", "name"),
    [("apply", Hooks, "remove"), ("install", Applied, "remove"), ("fuse", Fusion, "undo")],
    ids=["apply", "install", "fuse"],
)
@pytest.mark.parametrize("check", [check_text, check_picture])
def test_what_does_not_come_off_again_is_caught(
    monkeypatch: pytest.MonkeyPatch, check: Any, way: str, owner: type, name: str
) -> None:
    monkeypatch.setattr(owner, name, lambda self: False)
    with pytest.raises(LawBroken, match=r"^law [12] \("):
        check(way=way)


def test_a_composition_of_which_one_does_not_come_off_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AppliedTogether, "__exit__", lambda self, *_: self[0].remove())
    with pytest.raises(LawBroken, match=r"^law [12] \("):
        check_text(way="composition")


@pytest.mark.parametrize("way", ["apply", "install"])
@pytest.mark.parametrize("check", [check_text, check_picture])
def test_a_site_that_is_left_out_of_the_report_is_caught(monkeypatch: pytest.MonkeyPatch, check: Any, way: str) -> None:
    told = Applied.report
    monkeypatch.setattr(Applied, "report", lambda self: told(self)[1:])
    with pytest.raises(LawBroken, match=r"^law 6 \(.*report\(\) leaves out sites"):
        check(way=way)


@pytest.mark.parametrize("check", [check_text, check_picture])
def test_a_fused_site_that_is_left_out_of_the_report_is_caught(monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    told = Fusion.report
    monkeypatch.setattr(Fusion, "report", lambda self: told(self)[1:])
    with pytest.raises(LawBroken, match=r"^law 6 \("):
        check(way="fuse")


@pytest.mark.parametrize("check", [check_text, check_picture])
def test_a_fusion_that_does_something_else_than_what_is_applied_is_caught(
    monkeypatch: pytest.MonkeyPatch, check: Any
) -> None:
    fuse = dsas.Steering.fuse

    def halved(self: dsas.Steering, model: Any, strength: Any = None, **options: Any) -> Fusion:
        return fuse(self, model, 0.5 if strength is None else strength, **options)

    monkeypatch.setattr(dsas.Steering, "fuse", halved)
    with pytest.raises(LawBroken, match=r"^law 6 \(.*fused"):
        check(way="fuse")


@pytest.mark.parametrize("way", [*WAYS, "composition"])
def test_what_comes_back_from_files_as_something_else_is_caught(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    load = dsas.Steering.from_pretrained.__func__  # type: ignore[attr-defined]

    def halved(cls: Any, *arguments: Any, **options: Any) -> dsas.Steering:
        return 0.5 * load(cls, *arguments, **options)

    monkeypatch.setattr(dsas.Steering, "from_pretrained", classmethod(halved))
    with pytest.raises(LawBroken, match=r"^law 5 \("):
        check_text(way=way)


def test_checking_the_laws_leaves_the_model_and_the_global_random_state_as_they_were() -> None:
    model = tiny_model()
    state = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for way in ("apply", "fuse"):
        check_steering(random_steering(model), model, tiny_tokenizer(), prompts=("A fox ran", "Hi"), way=way)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_unknown_way_and_a_composition_that_is_to_be_fused_are_refused() -> None:
    steering = random_steering(tiny_model())
    with pytest.raises(OptionError, match="a composition cannot be fused: fuse its Steerings one after another"):
        Way(steering | steering, "fuse")
    strengths = torch.ones(2, WIDTH)
    assert Way(steering).by_row(strengths) is strengths
    assert len(Way(steering | steering).by_row(strengths)) == 2
