"""Engine: what vLLM's `LLM` and `vllm serve` have to be told to steer.

from vllm import LLM, SamplingParams
llm = LLM("./model", **dsas.serving.engine.arguments("./model", ["detox/"]))
llm.generate(prompts, SamplingParams(extra_args={"dsas_steering": "detox", "dsas_strength": 0.5}))
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoConfig

from dsas.errors import MissingExtraError, ModelMismatchError, OptionError, StateError, shown
from dsas.files.json_values import Json, JsonObject
from dsas.model.foreign import Foreign, Given
from dsas.serving.config import KEY, ServingConfig, Source, source_of
from dsas.serving.reports import combined
from dsas.serving.requests import check_name
from dsas.serving.tables import served_rows
from dsas.steering.steering import Steering

WORKER = "dsas.serving.worker.SteeringWorker"


def arguments(
    model: str, steerings: Sequence[str], *, together: int = 1, spare: int = 0, reports: bool = False
) -> JsonObject:
    """Return the arguments for `LLM` or the engine of a server, and check in this process what requests ask.

    steerings: folders or hub ids; each is known by its last part, or by the name before the equals sign of
    "name=folder". together: how many of them one request may combine; every one costs a step at every site, used or
    not. spare: how many more, or newer versions, may be loaded while the server runs. reports: let requests ask how
    strongly they were steered (`report`), which costs every token a sum at every site.
    Raises OptionError for what cannot be served or two of one name, ModelMismatchError for another kind of model,
    ArtifactError for a folder that holds no Steering, MissingExtraError without vLLM.
    """
    require_vllm()
    if together < 1 or spare < 0:
        raise OptionError(f"together must be >= 1 and spare >= 0, got {together} and {spare}")
    sources: dict[str, Source] = {}
    for given in steerings:
        name, _, folder = given.rpartition("=")
        name = name or Path(folder).name
        if name in sources:
            raise OptionError(f"two Steerings are called {name!r}: write one of them as other-name={folder}")
        sources[name] = checked(name, folder, model)
    if not sources:
        raise OptionError("a server that steers needs at least one Steering")
    from dsas.serving.admission import activate

    activate()
    return {"worker_cls": WORKER, "additional_config": ServingConfig(sources, together, spare, reports).as_json()}


def checked(name: str, folder: str, model: str) -> Source:
    """Return the source of a Steering that can be served on a model. Raises as `arguments`, naming the Steering."""
    check_name(name)
    steering = Steering.from_pretrained(folder)
    config = AutoConfig.from_pretrained(model)
    text = config.get_text_config()
    try:
        served_rows(steering, (config.architectures or [""])[0], text.hidden_size, text.num_hidden_layers)
    except (OptionError, ModelMismatchError) as error:
        raise type(error)(f"{name!r} cannot be served: {error}") from error
    local = Path(folder)
    return source_of(str(local.resolve()) if local.is_dir() else folder, steering)


def load(llm: Foreign, name: str, folder: str) -> None:
    """Take a Steering, or a newer version of one, into a running `LLM`. Raises OptionError as `SteeredRunner.load`."""
    given = llm.llm_engine.vllm_config
    source = checked(name, folder, given.model_config.model)
    problems = llm.collective_rpc("dsas_load", args=(name, source._asdict()))
    publish(given.additional_config, name, source, problems)


def report(llm: Foreign, output: Given) -> JsonObject:
    """Return how strongly the request of an output of `LLM` was steered; once, and if it asked (`dsas_report`).

    {"tokens": read by the model, "mean_strength": {name: mean over tokens and sites of what was applied}}
    """
    reports = [one for one in llm.collective_rpc("dsas_report", args=(output.request_id,)) if one is not None]
    if not reports:
        raise StateError(f"nothing is known of request {output.request_id}: it did not ask, or was told already")
    return combined(reports, list(reports[0]["mean_strength"]))


def publish(config: JsonObject, name: str, source: Source, problems: Sequence[str | None]) -> None:
    """Let requests name a Steering that all workers have taken. Raises OptionError with what one of them said."""
    said = [problem for problem in problems if problem is not None]
    if said:
        raise OptionError(said[0])
    config[KEY]["steerings"][name] = source._asdict()


def withdraw(config: JsonObject, name: str) -> None:
    """Let no further request name a Steering; those that run go on. Raises OptionError when there is none."""
    steerings: Mapping[str, Json] = config[KEY]["steerings"]
    if name not in steerings:
        raise OptionError(f"no Steering {shown(name)} is loaded, only {shown(sorted(steerings), most=400)}")
    config[KEY]["steerings"] = {key: value for key, value in steerings.items() if key != name}


def require_vllm() -> None:
    """Raise MissingExtraError unless vLLM is installed."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm")
