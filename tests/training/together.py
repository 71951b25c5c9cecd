"""What the ranks of tests/training/test_ranks.py run, in processes of their own that have no run-time type checks."""

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from blocks import DIM, SITES, Two, batch_of, cut, rules_of, work_on
from pictures import OPTIONS

import dsas
from dsas.errors import OptionError, TextsError
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.pipelines import tiny_pipeline
from dsas.training.loop import Learned, learn
from dsas.training.plan import HeldOut, Optimiser, Plan, Running
from dsas.training.ranks import Ranks
from dsas.training.trainer import Data, Trainer

QUIET = Running(progress=False)
SETS = {
    name: [f"{start} {n}" for n in range(7)]
    for name, start in (("source", "SHUT UP"), ("control", "the door"), ("target", "thank you"))
}


def trainer_with(ranks: Ranks, dtype: torch.dtype, control_weight: float, *, size: int = 2, **plan: Any) -> Trainer:
    """Return a trainer on 9 source, 7 control, 5 and 4 held-out rows in batches of `size`; of size 9 there is one."""
    torch.manual_seed(3)
    model = Two().to(dtype)
    source, control = batch_of(9, 0.5, dtype), batch_of(7, -0.5, dtype)
    held = batch_of(5, 0.5, dtype), batch_of(4, -0.5, dtype)
    target = [torch.randn(8, DIM, dtype=dtype) - 0.3 for _ in SITES]
    data = Data(cut(source, size), cut(control, size), target, cut(held[0], size), cut(held[1], size))
    regulator = None if control_weight else dsas.Constant
    settings = {"steps": 12, "optimiser": Optimiser("adam", 0.05, 0.05), "held_out": HeldOut(0.2, every=2), **plan}
    rules, wanted = rules_of(dtype, regulator), Plan(**settings)
    return Trainer(work_on(model), rules, data, wanted, ranks, control_weight=control_weight)


def gradients_of(trainer: Trainer) -> dict[str, Any]:
    found = trainer.gradient()
    return {"terms": found[:2], "look": trainer.look(), **{name: leaf.grad for name, leaf in trainer.leaves.items()}}


def train(model: nn.Module | None = None, **options: Any) -> dsas.Steering:
    given = {**SETS, "objective": "e2e-dsas", "steps": 4, "running": QUIET, **options}
    return dsas.train(tiny_model(layers=2) if model is None else model, tiny_tokenizer(), **given)


def train_pipeline() -> dsas.Steering:
    reading = dsas.Drawing(steps=2, options=OPTIONS["sd"])
    sites = ["unet.down_blocks.0.resnets.0", "unet.mid_block.attentions.0.transformer_blocks.0.norm2"]
    given = {**SETS, "objective": "e2e-dsas", "sites": sites, "steps": 2, "reading": reading}
    return dsas.train(tiny_pipeline("sd"), **given, held_out=HeldOut(0.0), running=QUIET)


def train_by_instruction(folder: Path) -> dsas.Steering:
    chat = dsas.Chat(arguments={"chat_template": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"})
    given = {name: SETS[name] for name in ("source", "control")}
    return dsas.train(
        tiny_model(layers=2), tiny_tokenizer(), **given, steps=4, sites="residual", running=QUIET, checkpoint=folder,
        objective=dsas.Imitate(instruction="Be kind.", new_tokens=6), reading=dsas.Reading(batch_size=2, chat=chat),
    )  # fmt: skip


def interrupted(ranks: Ranks, file: Path) -> Learned:
    """Train until the last rank hears Ctrl-C in the middle of its third step, the second time for good measure."""
    trainer = trainer_with(ranks, torch.float64, 0.7)
    take = trainer.descent.step

    def move(number: int) -> None:
        move.taken += 1  # pyright: ignore[reportFunctionMemberAccess]
        if move.taken >= 3 and ranks.number == ranks.count - 1:  # pyright: ignore[reportFunctionMemberAccess]
            os.kill(os.getpid(), signal.SIGINT)
        take(number)

    move.taken = 0  # pyright: ignore[reportFunctionMemberAccess]
    trainer.descent.step = move
    return learn(trainer, file=file, progress=False)


def refused(function: Any, **options: Any) -> str:
    try:
        function(**options)
    except (OptionError, TextsError) as error:
        return str(error)
    return ""


def everything(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Return what the tests look at; `folder` is of all ranks."""
    found: dict[str, Any] = {}
    for dtype in (torch.float64, torch.float32):
        for weight in (0.0, 0.7):
            key = f"{dtype} {weight}"
            for size in (2, 9):
                found[f"gradients {key} {size}"] = gradients_of(trainer_with(ranks, dtype, weight, size=size))
            found[f"learned {key}"] = learn(trainer_with(ranks, dtype, weight), progress=False)
    early = {"held_out": HeldOut(0.2, every=1, patience=1), "optimiser": Optimiser("sgd", 5.0, 5.0), "steps": 40}
    found["early"] = learn(trainer_with(ranks, torch.float64, 0.7, **early), progress=False)
    found["interrupted"] = interrupted(ranks, folder / "state")
    found["resumed"] = learn(trainer_with(ranks, torch.float64, 0.7), file=folder / "state", progress=False)
    for name in ("lineas", "e2e-dsas", "preference"):
        reading = dsas.Reading(batch_size=2)
        options = {"objective": name, "reading": reading, "checkpoint": folder / name, "sites": ["norm", "residual"]}
        found[name] = _numbers(train(**options))
    found["imitate"] = _numbers(train_by_instruction(folder / "imitate"))
    found["pipeline"] = _numbers(train_pipeline())
    alone, held_out = QUIET._replace(distributed=False), HeldOut(seed=ranks.number)
    own = {"running": alone, "held_out": held_out, "checkpoint": folder / f"own {ranks.number}"}
    found["own"] = _numbers(train(**own))
    if ranks.count > 1:
        found["different"] = refused(train, held_out=HeldOut(seed=ranks.number))
        parallel = tiny_model(layers=2)
        parallel._tp_size = ranks.count  # pyright: ignore[reportArgumentType]
        found["parallel"] = refused(train, model=parallel)
        found["from first"] = refused(ranks.from_first, make=_fail if ranks.first else None)
    return found


def _fail() -> None:
    raise TextsError("the first rank cannot")


def _numbers(steering: dsas.Steering) -> dict[str, Any]:
    methods = [(rule.transform, rule.regulator) for rule in steering.rules]
    values = {
        f"{number} {name}": value
        for number, both in enumerate(methods)
        for method in both
        for name, value in method.named_buffers()
    }
    return {"digest": steering.digest(), "values": values, "settings": steering.settings["training"]}


def process(number: int, count: int, folder: Path) -> None:
    """Run everything as one of several processes, and keep what it gives."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=number, world_size=count, timeout=timedelta(minutes=5))
    found = everything(Ranks(dist.group.WORLD), folder)
    torch.save(found, folder / f"found {number}")
    dist.destroy_process_group()
