"""Inspect runs a steered model by name: chat, log-probabilities and tools as with its own provider, and a real task."""

import asyncio
import gc
import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import random_steering

import dsas
from dsas.errors import ArtifactError, OptionError
from dsas.testing import tiny_model, tiny_tokenizer

pytest.importorskip("inspect_ai", reason="needs Inspect: pip install 'dsas[inspect]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Inspect's own imports

TEMPLATE = (
    "{% if tools %}[{{ tools[0]['name'] }}]{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
)
STRENGTH = 3.0


@pytest.fixture(autouse=True)
def _streams_that_inspect_leaves_open() -> Iterator[None]:
    yield
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Any, dict[str, str]]:
    """Write a tiny model with a chat template and a Steering, and return the model and Inspect's arguments."""
    model, tokenizer = tiny_model("llama", layers=2), tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    random_steering(model).save_pretrained(tmp_path / "detox")
    return model, {"model_path": str(tmp_path / "model"), "steering": str(tmp_path / "detox"), "device": "cpu"}


def opened(arguments: dict[str, str], strength: float | None = STRENGTH, **options: Any) -> Any:
    from inspect_ai.model import get_model

    import dsas.evaluation.inspect_provider  # noqa: F401, what the entry point names

    return get_model("dsas/tiny", memoize=False, strength=strength, do_sample=False, **arguments, **options)


def answered(model: Any, tools: Any = (), **config: Any) -> Any:
    from inspect_ai.model import GenerateConfig

    return asyncio.run(model.generate("Who are you?", tools=list(tools), config=GenerateConfig(max_tokens=8, **config)))


def greedy(model: Any, text: str) -> str:
    given = tiny_tokenizer()(text, return_tensors="pt")
    said = model.generate(**given, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return tiny_tokenizer().decode(said[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_entry_point_names_the_module() -> None:
    found = [point for point in entry_points(group="inspect_ai") if point.name == "dsas"]
    if not found:
        pytest.skip("dsas was installed before it had this entry point")
    assert found[0].value == "dsas.evaluation.inspect_provider"


def test_a_chat_is_answered_as_the_steered_model_answers_it_and_unsteered_at_strength_0(stored: Any) -> None:
    model, arguments = stored
    with dsas.Steering.from_pretrained(arguments["steering"]).apply(model, STRENGTH):
        steered = greedy(model, "user: Who are you?\n")
    plain = greedy(model, "user: Who are you?\n")
    assert steered != plain
    assert answered(opened(arguments)).completion == steered
    assert answered(opened(arguments, 0.0)).completion == plain
    folder = arguments["steering"]
    both = arguments | {"steering": [folder, folder]}  # as -M steering=detox,detox is read
    assert answered(opened(both, ["0", str(STRENGTH)])).completion == steered


def test_log_probabilities_and_tools_are_passed_through(stored: Any) -> None:
    from inspect_ai.tool import ToolInfo

    model, arguments = stored
    tool = ToolInfo(name="weather", description="Tells the weather.")
    with dsas.Steering.from_pretrained(arguments["steering"]).apply(model, STRENGTH), torch.no_grad():
        expected = greedy(model, "[weather]user: Who are you?\n")
        given = tiny_tokenizer()("[weather]user: Who are you?\n", return_tensors="pt")
        first = model(**given).logits[0, -1].log_softmax(-1).max().item()
    found = answered(opened(arguments), [tool], logprobs=True, top_logprobs=2)
    assert expected.strip() in found.completion or found.completion in expected
    assert found.choices[0].logprobs.content[0].logprob == pytest.approx(first, abs=1e-4)


def test_closing_takes_the_steering_off(stored: Any) -> None:
    _, arguments = stored
    provider = opened(arguments).api
    held = provider.model
    assert len(dsas.installed(held)) == 1
    provider.close()
    assert dsas.installed(held) == []


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"steering": None}, OptionError, "expected -M steering=FOLDER, a folder or hub id, got None"),
        ({"steering": "gone"}, ArtifactError, "neither a local folder nor a readable hub id"),
        ({"strength": "much"}, OptionError, "strength: expected a number, got 'much'"),
    ],
)
def test_a_mistake_is_told_before_the_model_is_loaded(stored: Any, changed: Any, error: Any, message: str) -> None:
    _, arguments = stored
    given = arguments | {"model_path": "absent"} | changed
    with pytest.raises(error, match=message):
        opened(given, given.pop("strength", None))


def test_an_argument_that_nobody_takes_is_named_with_the_closest_one(stored: Any) -> None:
    with pytest.raises(OptionError, match="no argument 'strengh'; closest: 'strength'"):
        opened(stored[1], strengh=0.2)


@pytest.mark.real
def test_a_task_of_inspect_runs_on_a_real_model_and_steering_changes_its_answers(tmp_path: Path) -> None:
    import inspect_ai
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import choice
    from inspect_ai.solver import multiple_choice

    from dsas.demo.models import real_model
    from dsas.model.loading import load_model

    loaded = load_model(str(real_model("smollm2")))
    source, control = ([f"{start} number {n}." for n in range(8)] for start in ("I hate", "This is"))
    steering = dsas.fit(*loaded, source=source, control=control, target=control, regulator="constant", progress=False)
    steering.save_pretrained(tmp_path / "steering")
    questions = [("What is 1 + 1?", ["1", "2"], "B"), ("Which is an animal?", ["a cat", "a stone"], "A")]
    samples = [Sample(input=asked, choices=options, target=right) for asked, options, right in questions]
    task = inspect_ai.Task(dataset=samples, solver=multiple_choice(), scorer=choice())
    said = []
    for strength in (0.0, 0.3):
        arguments = {"model_path": str(real_model("smollm2")), "steering": str(tmp_path / "steering")}
        (log,) = inspect_ai.eval(
            task, model="dsas/smollm2", model_args=arguments | {"strength": strength, "do_sample": False},
            max_tokens=24, log_dir=str(tmp_path / f"{strength}"), display="none",
        )  # fmt: skip
        assert log.status == "success"
        assert log.results.scores[0].metrics["accuracy"].value in (0.0, 0.5, 1.0)
        said.append([sample.output.completion for sample in log.samples])
    assert said[0] != said[1]
