"""Engine: the arguments with which vLLM's `LLM` and `vllm serve` steer.

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
from dsas.serving.answers import digests_in_use
from dsas.serving.config import KEY, ServingConfig, Source, source_of
from dsas.serving.places import reads_token_ids
from dsas.serving.reports import combined
from dsas.serving.requests import LARGEST, Default, check_name
from dsas.serving.rule_rows import Row, places_of, served_rows
from dsas.steering.steering import Steering

WORKER = "dsas.serving.worker.SteeringWorker"


def arguments(
    model: str,
    steerings: Sequence[str],
    *,
    together: int = 1,
    spare: int = 0,
    reports: bool = False,
    default: str | None = None,
    may_be_off: bool = False,
) -> JsonObject:
    """Return the arguments for `LLM` or the engine of a server; from then on, this process checks requests.

    steerings: folders or hub ids; each is named by its last part, or by the name before the equals sign in
    "name=folder". together: how many of them one request may combine; each one costs time at every site, used or not.
    spare: how many more, or newer versions, can be loaded while the server runs. reports: lets requests ask how
    strongly they were steered (`report`), and be judged by it (`verdicts`), which costs a sum per token and site.
    default: "name" or "name=strength": the Steering of requests that name none. may_be_off: whether a request may turn
    the default off.
    Raises OptionError for what cannot be served or two of one name, ModelMismatchError for another kind of model,
    ArtifactError for a folder that holds no Steering, MissingExtraError without vLLM.
    """
    require_vllm()
    if together < 1 or spare < 0:
        raise OptionError(f"together must be >= 1 and spare >= 0, got {together} and {spare}")
    sources: dict[str, Source] = {}
    ids = False
    for given in steerings:
        name, folder = named_folder(given)
        if name in sources:
            raise OptionError(f"two Steerings are called {name!r}: write one of them as other-name={folder}")
        sources[name], rows = fitting(name, folder, model)
        ids = ids or reads_token_ids(places_of(rows))
    if not sources:
        raise OptionError("a server that steers needs at least one Steering")
    config = ServingConfig(sources, together, spare, reports, _default(default, sources, may_be_off)).as_json()
    from dsas.serving.admission import activate

    activate()
    known = {"async_scheduling": False} if ids else {}  # otherwise steps are scheduled before their tokens are known
    return {"worker_cls": WORKER, "additional_config": config, **known}


def named_folder(given: str) -> tuple[str, str]:
    """Return name and folder of "name=folder", or of a folder or hub id alone, which is named by its last part."""
    name, _, folder = given.rpartition("=")
    return name or Path(folder).name, folder


def _default(given: str | None, sources: Mapping[str, Source], may_be_off: bool) -> Default | None:
    """Return the operator's default. Raises OptionError for a name that is not loaded, or an invalid strength."""
    if given is None:
        if may_be_off:
            raise OptionError("there is no default that requests could turn off: give one as name or name=strength")
        return None
    name, equals, said = (given, "", "") if given in sources else given.rpartition("=")
    try:
        strength = float(said) if equals else None
    except ValueError:
        name, strength = given, None
    if name not in sources:
        raise OptionError(
            f"the default must be a Steering that is served, got {shown(given)}; known: {sorted(sources)}"
        )
    if strength is not None and not 0 < abs(strength) <= LARGEST:
        raise OptionError(f"the default's strength must be a number other than 0, at most {LARGEST:g}, got {said}")
    return Default(name, strength, may_be_off)


def checked(name: str, folder: str, model: str) -> Source:
    """Return the source of a Steering that can be served on a model. Raises as `arguments`, naming the Steering."""
    return fitting(name, folder, model)[0]


def fitting(name: str, folder: str, model: str) -> tuple[Source, dict[str, Row]]:
    """Return the source and the rows of a Steering that can be served on a model. Raises as `checked`."""
    check_name(name)
    steering = Steering.from_pretrained(folder)
    config = AutoConfig.from_pretrained(model)
    text = config.get_text_config()
    try:
        rows = served_rows(steering, (config.architectures or [""])[0], text.hidden_size, text.num_hidden_layers)
    except (OptionError, ModelMismatchError) as error:
        raise type(error)(f"{name!r} cannot be served: {error}") from error
    local = Path(folder)
    source = source_of(str(local.resolve()) if local.is_dir() else folder, steering)
    return source._replace(reads_prompts=any(row.by_prompt for row in rows.values())), rows


def load(llm: Foreign, name: str, folder: str) -> None:
    """Load a Steering, or a newer version of one, into a running `LLM`. Raises OptionError as `SteeredRunner.load`."""
    given = llm.llm_engine.vllm_config
    source = checked(name, folder, given.model_config.model)
    kept = [one["digest"] for one in given.additional_config[KEY]["steerings"].values()]
    used = digests_in_use(llm.llm_engine.output_processor)
    llm.collective_rpc("dsas_keep", args=([*kept, *used],))
    problems = llm.collective_rpc("dsas_load", args=(name, source._asdict()))
    publish(given.additional_config, name, source, problems)


def report(llm: Foreign, output: Given) -> JsonObject:
    """Return how strongly the request of an output of `LLM` was steered, soon after it ended (`reports.KEPT_FOR`).

    {"tokens": number read by the model, "mean_strength": {name: mean over tokens and sites of what was applied},
     "above_half": {name: tokens whose mean regulator over the sites was above 1/2}}
    Raises StateError for a request that was not steered or ended long ago, and without reports.
    """
    reports = [one for one in llm.collective_rpc("dsas_report", args=(output.request_id,)) if one is not None]
    if not reports:
        raise StateError(f"nothing is known of request {output.request_id}: it was not steered, or ended long ago")
    return combined(reports, list(reports[0]["mean_strength"]))


def publish(config: JsonObject, name: str, source: Source, problems: Sequence[str | None]) -> None:
    """Let requests name a Steering that all workers have loaded. Raises OptionError with the error of a worker."""
    said = [problem for problem in problems if problem is not None]
    if said:
        raise OptionError(said[0])
    config[KEY]["steerings"][name] = source._asdict()


def withdraw(config: JsonObject, name: str) -> None:
    """Let no further request name a Steering; running requests continue. Raises OptionError for an unknown name."""
    steerings: Mapping[str, Json] = config[KEY]["steerings"]
    default = config[KEY].get("default")
    if default and default[0] == name:
        raise OptionError(f"{name!r} is the default of this server: it can be replaced but not unloaded")
    if name not in steerings:
        raise OptionError(f"no Steering {shown(name)} is loaded, only {shown(sorted(steerings), most=400)}")
    config[KEY]["steerings"] = {key: value for key, value in steerings.items() if key != name}


def require_vllm() -> None:
    """Raise MissingExtraError unless vLLM is installed."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm")
