"""Stored fields: the config of a Steering is checked against what it may say before anything is built from it.

Anybody can write a config with correct digests, so nothing in it is trusted: names, types, ranges and the shapes of
tensors are checked, and that all tensors are used.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from dsas.errors import ArtifactError
from dsas.files.json_values import Json, JsonObject
from dsas.methods.schema import check_fields
from dsas.model.identity import ModelIdentity
from dsas.model.sites import Site
from dsas.regulators import REGULATORS
from dsas.runtime.rule import Rule
from dsas.steering.calibration_record import Calibration, Spent
from dsas.steering.serialization import unpack
from dsas.transforms import TRANSFORMS

DEPTH = 32  # depth of nested lists and objects


class _Line(NamedTuple):
    site: JsonObject
    transform: JsonObject
    regulator: JsonObject
    weight: float
    accuracy: float | None


class _Config(NamedTuple):
    schema: int
    dsas_version: str
    model: JsonObject
    settings: JsonObject
    rules: list[JsonObject]
    tensors_sha256: str
    config_sha256: str
    calibration: JsonObject | None


def check_config(config: Json) -> None:
    """Raise ArtifactError, naming the field, for a config that no Steering has written; rules are checked later."""
    check_depth(config)
    check_fields(_Config, config, "it", optional=("calibration",))
    check_fields(ModelIdentity, config["model"], "model", optional=("family", "decoder", "wrapped", "part", "sketch"))
    if (stored := config.get("calibration")) is not None:
        # `Calibration.from_dict` reads the format, and which value the strength has.
        fields = {name: 1.0 if name == "strength" else one for name, one in stored.items() if name != "format"}
        check_fields(Calibration, fields, "calibration", optional=("before",))
        for number, budget in enumerate(stored["budgets"]):
            check_fields(Spent, budget, f"calibration.budgets.{number}", optional=("sure",))
            for interval in (budget["held_out"], *budget["by_kind"].values()):
                if not {"mean", "low", "high", "n"} <= set(interval):
                    raise ArtifactError(f"calibration.budgets.{number}: expected mean, low, high and n, got {interval}")


def rules_of(lines: list[JsonObject], tensors: Mapping[str, Tensor]) -> list[Rule]:
    """Return the rules. Raises ArtifactError, naming the field, or OptionError or SiteError for a value."""
    rules = []
    for number, line in enumerate(lines):
        check_fields(_Line, line, f"rules.{number}")
        check_fields(Site, line["site"], f"rules.{number}.site", optional=("layout",))
        for name in ("weight", "accuracy"):
            if line[name] is not None and not 0 <= line[name] <= 1:
                raise ArtifactError(f"rules.{number}.{name}: expected a number from 0 to 1, got {line[name]}")
        sizes: dict[str, int] = {}
        transform = unpack(TRANSFORMS, line["transform"], f"{number}.transform", tensors, sizes)
        regulator = unpack(REGULATORS, line["regulator"], f"{number}.regulator", tensors, sizes)
        rules.append(Rule(Site(**line["site"]), transform, regulator, line["weight"], line["accuracy"]))
    return rules


def check_depth(value: Json, depth: int = 0) -> None:
    """Raise ArtifactError for lists and objects more than 32 deep."""
    if depth > DEPTH:
        raise ArtifactError(f"expected values at most {DEPTH} deep")
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            check_depth(one, depth + 1)
