"""Wrappers of several processes: a Steering on a model whose weights or passes two processes share."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from makers import logits_of, random_steering
from torch import distributed, nn

import dsas
from dsas.errors import DsasWarning
from dsas.model.identity import ModelIdentity
from dsas.testing import tiny_model, tiny_tokenizer

IDS = torch.tensor([[3, 1, 4, 1, 5]])
SETS: Any = {
    **{name: [f"{word} {number}" for number in range(4)] for name, word in
       {"source": "bad", "control": "fine", "target": "good"}.items()},
    "selection": "all", "progress": False,
}  # fmt: skip


def data_parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def sharded(model: Any) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for module in (*model.model.layers, model):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    return model


def found(wrap: Any) -> dict[str, Any]:
    """Return what a process of two finds on a wrapped model, against the same model as it is."""
    plain, model, tokenizer = tiny_model(), wrap(tiny_model()), tiny_tokenizer()
    fitted, again = dsas.fit(plain, tokenizer, **SETS), dsas.fit(model, tokenizer, **SETS)
    held_up = dsas.Reading(incremental=True, batch_size=3)
    in_turn = [dsas.fit(one, tokenizer, reading=held_up, **SETS).digest() for one in (plain, model)]
    steering = random_steering(plain)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", DsasWarning)
        with steering.apply(model, 0.5) as applied:
            got = logits_of(model, IDS)
        seen = [str(one.message) for one in warned]
    with steering.apply(plain, 0.5) as expected:
        wanted = logits_of(plain, IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DsasWarning)
        ported = fitted.port(model, tokenizer, source=SETS["source"], control=SETS["control"])
        continued = dsas.explain(model, tokenizer, steering, prompt="hello", generate=3, strength=0.5)
        of_plain = dsas.explain(plain, tokenizer, steering, prompt="hello", generate=3, strength=0.5)
    return {
        "logits": torch.equal(got, wanted),
        "trace": torch.equal(applied.trace().strengths, expected.trace().strengths),
        "fit": fitted.digest() == again.digest(),
        "fit incrementally": in_turn[0] == in_turn[1],
        "compared": again.model.compare(ModelIdentity.of(plain)),
        "itself": again.model.compare(ModelIdentity.of(model)),
        "differences": again.model.differences(ModelIdentity.of(plain), plain),
        "warned": seen,
        "verdict": ported.verdict,
        "continued": continued.tokens == of_plain.tokens,
    }


def process(rank: int, folder: str) -> None:
    """Run as one of two processes, and write what it found."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    both = {name: found(wrap) for name, wrap in {"ddp": data_parallel, "fsdp2": sharded}.items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(both))
    distributed.destroy_process_group()


def test_two_processes_that_share_a_model_steer_fit_and_port_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        own = json.loads((tmp_path / f"{rank}.json").read_text())
        for one in own.values():
            assert {one[name] for name in ("logits", "trace", "fit", "fit incrementally", "continued")} == {True}
            assert (one["itself"], one["verdict"]) == ("exact", "fits")
        assert (own["ddp"]["compared"], own["ddp"]["warned"]) == ("exact", [])
        part = f"only the weights of the part process {rank} of 2 were compared"
        assert (own["fsdp2"]["compared"], own["fsdp2"]["differences"]) == ("relative", [part])
        (said,) = own["fsdp2"]["warned"]
        assert "weights are of type DTensor, compared by their local values; " + part in said
