"""Artifacts: stored Steerings that were changed at random load as what they are or end in our own error.

    python -m campaigns.artifacts --rounds 100000 --seed 0          (from tests/)

Half of them carry right digests, which anybody can write. What loads must also run, or say why it does not.
"""

import copy
import hashlib
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from campaigns.rounds import among, begun
from makers import random_steering
from safetensors.torch import load, save

import dsas
from dsas.errors import DsasError
from dsas.fitting.method_names import regulator_fit, transform_fit
from dsas.steering.calibration_record import Spent
from dsas.testing import tiny_model

VALUES = (
    None,
    True,
    -1,
    0,
    2.5,
    1e400,
    float("nan"),
    3e38,
    2**30,
    10**30,
    "",
    "x",
    "../x",
    "\x1b[31m",
    [],
    [[]],
    {},
    {"a": 1},
    [1, "a"],
)
KINDS = (torch.float16, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64)
REGULATORS = [
    *(name for name in dsas.REGULATORS if name not in ("product", "per-step", "clean")),
    "cast*schedule",
]
IDS = torch.arange(12).reshape(2, 6) + 60


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a JSON value."""
    if isinstance(value, dict):
        return [(value, key) for key in value] + [one for inner in value.values() for one in places(inner)]
    if isinstance(value, list):
        return [(value, key) for key in range(len(value))] + [one for inner in value for one in places(inner)]
    return []


def changed_config(config: dict[str, Any], drawn: random.Random) -> None:
    """Change one or two places of a config."""
    for _ in range(drawn.choice((1, 1, 2))):
        container, key = drawn.choice(places(config))
        how = drawn.random()
        if how < 0.6:
            container[key] = copy.deepcopy(drawn.choice(VALUES))
        elif how < 0.8:
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[drawn.choice(("extra", "name", "parts", "value"))] = container.pop(key)


def changed_tensors(data: bytes, drawn: random.Random) -> bytes:
    """Change one tensor: its shape, type, value or name."""
    tensors = load(data)
    name = drawn.choice(sorted(tensors))
    value = tensors.pop(name)
    how = drawn.randrange(9)
    if how == 0:
        tensors[name] = value.reshape(-1)[:-1].clone() if value.numel() > 1 else value.expand(2).clone()
    elif how == 1:
        tensors[name] = value.to(drawn.choice(KINDS))
    elif how == 2:
        tensors[name] = value[None].clone()
    elif how == 3:
        tensors[name] = torch.full_like(value, drawn.choice((float("nan"), float("inf"), 3e38)))
    elif how == 4:
        tensors[f"{name}.x"] = value
    elif how in (7, 8):
        tensors[name] = value * drawn.choice((0.0, -1.0, 1e-40, 1e30))
    elif how == 5:
        tensors |= {name: value, "999.transform.vector": torch.ones(3)}
    return save(tensors) if tensors else b""


def write(folder: Path, config: dict[str, Any], data: bytes, *, signed: bool) -> None:
    """Write an artifact, with right digests if signed."""
    if signed:
        config["tensors_sha256"] = hashlib.sha256(data).hexdigest()
        body = {key: value for key, value in config.items() if key != "config_sha256"}
        config["config_sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text(json.dumps(config))


def originals(model: Any) -> list[dsas.Steering]:
    """Return Steerings of every transform and every regulator, the last one with its evidence."""
    source, control, target = (torch.randn(n, 32) + shift for n, shift in ((12, 0.5), (9, -0.5), (10, -0.4)))
    found, transforms = list[dsas.Steering](), list(dsas.TRANSFORMS)
    for number, name in enumerate(REGULATORS):
        how = transform_fit(transforms[number % len(transforms)])(source, target)
        when = regulator_fit(name)(source, control, target).regulator
        found.append(random_steering(model, transform=how, regulator=when))
    clean = dsas.Clean(dsas.Logistic(torch.ones(32), torch.tensor(0.1)))
    told = random_steering(model, regulator=clean).described("It sings.", licence="mit")
    one = {"mean": 0.05, "low": 0.01, "high": 0.2, "n": 4}
    spent = Spent("kl", 0.1, True, 0.05, one, {"plain": one})
    made = (told.digest(), told.model.fingerprint, "0.2")
    kinds = {"plain": 4}
    return [*found, told.calibrated(dsas.Calibration(0.5, (spent,), ((0.5, 0.05),), 0.6, kinds, kinds, None, *made))]


def run(rounds: int, seed: int) -> Counter[str]:
    """Return how often which end came."""
    drawn, found = random.Random(seed), Counter[str]()
    model = tiny_model("llama", layers=2)
    with tempfile.TemporaryDirectory() as root:
        folder, stored = Path(root) / "steering", []
        for steering in originals(model):
            steering.save_pretrained(folder)
            config, data = (folder / "config.json").read_text(), (folder / "model.safetensors").read_bytes()
            stored.append((config, data, steering.digest()))
        for number in among(rounds):
            text, data, digest = drawn.choice(stored)
            config, signed = json.loads(text), number % 2 == 0
            if signed and drawn.random() < 0.6:
                changed_config(config, drawn)
                config = config if isinstance(config, dict) else {}
                write(folder, config, data, signed=True)
            elif signed:
                write(folder, config, changed_tensors(data, drawn), signed=True)
            else:
                name = drawn.choice(("config.json", "model.safetensors"))
                write(folder, config, data, signed=False)
                whole = bytearray((folder / name).read_bytes())
                if drawn.random() < 0.3:
                    del whole[drawn.randrange(len(whole)) :]
                else:
                    whole[drawn.randrange(len(whole))] ^= 1 << drawn.randrange(8)
                (folder / name).write_bytes(whole)
            found[outcome(model, folder, digest, signed)] += 1
    return found


def outcome(model: Any, folder: Path, digest: str, signed: bool) -> str:
    """Load, apply and run; say how that ended."""
    try:
        steering = dsas.Steering.from_pretrained(folder)
        if not signed and steering.digest() != digest:
            return "LOADED AS SOMETHING ELSE"
        repr(steering), steering.card(), steering.report()
    except DsasError:
        return "our error at load"
    except Exception as error:
        return f"WRONG at load: {type(error).__name__}: {error}"[:100]
    try:
        with torch.no_grad(), steering.apply(model, 0.1):
            model(input_ids=IDS)
    except DsasError:
        return "our error when applied"
    except Exception as error:
        return f"WRONG when applied: {type(error).__name__}: {error}"[:100]
    return "ran" if signed else "loaded as it was"


if __name__ == "__main__":
    asked = begun(__doc__, 20_000)
    counts = run(asked.rounds, asked.seed)
    print(f"{counts.total()} rounds: {dict(counts.most_common())}")
    raise SystemExit(any(not what.startswith(("our", "ran", "loaded")) for what in counts))
