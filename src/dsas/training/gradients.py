"""Gradients: `dsas.train` takes texts, or prompts of a pipeline, and returns a learned Steering."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from dsas.errors import DsasWarning, OptionError
from dsas.evaluation.question_list import everyday_questions
from dsas.files.json_values import Json, JsonObject
from dsas.model.conversation import Content, as_json, kind_of
from dsas.model.device_map import device_of
from dsas.model.drawing import Drawing
from dsas.model.examples import Given, check_sets
from dsas.model.foreign import Model, Tokenizer
from dsas.model.identity import ModelIdentity, fingerprint
from dsas.model.reading import Reading
from dsas.model.sites import Site, SitePatterns
from dsas.model.subject import Subject, subject_of
from dsas.model.tokenizing import text_tokenizer
from dsas.runtime.fuse import check_unsteered
from dsas.runtime.rule import Rule
from dsas.steering.steering import Steering
from dsas.training.answering import Answering
from dsas.training.learning import learnable, settled, support
from dsas.training.loop import Learned, learn
from dsas.training.objectives import objective_named
from dsas.training.objectives.base import AsksFirst, Objective, TrainingTask
from dsas.training.plan import HeldOut, Optimiser, Plan, Running
from dsas.training.ranks import ranks_here
from dsas.training.records import Log
from dsas.training.run import Run
from dsas.training.sets import held_apart
from dsas.transforms.lineas import Lineas

Start = Literal["fitted", "scratch"] | Steering


def train(
    model: Model,
    tokenizer: Tokenizer = None,
    *,
    source: Sequence[Given] = (),
    target: Sequence[Given] | None = None,
    control: Sequence[Given] = (),
    objective: str | Objective = "lineas",
    start: Start = "fitted",
    steps: int = 50,
    sites: SitePatterns = "norm",
    optimiser: Optimiser = Optimiser(),
    held_out: HeldOut = HeldOut(),
    reading: Reading | Drawing | None = None,
    checkpoint: str | Path | None = None,
    running: Running = Running(),
) -> Steering:
    """Learn a Steering for `model` by gradients through it; the model's weights neither change nor get gradients.

    model: a language model, with its tokenizer; or a diffusers pipeline, in which gradients flow through all denoising
    steps, so there should be few.
    source, target, control: as in `dsas.fit`, at least 4 examples each, without spans; control can be omitted if
    nothing reads it. In conversations, only the answers are learned from and preserved, each given its prompt. For
    `dsas.Imitate` the source holds questions, 200 everyday ones when it is not given, and there is no target.
    objective: a name from `dsas.OBJECTIVES`, or an object such as `dsas.E2E(regulator_form="relu")`.
    start: where learned regulators start: "fitted" in closed form or "scratch" (1/2 everywhere); transforms start at
    the identity. Or a Steering to continue from, at its sites and with its regulators where they are not learned; the
    objective says which rules it can start from.
    reading: `batch_size` is the size of a micro-batch: it sets memory and time, and does not change the gradient. When
    not given, Reading(batch_size=32), or for a pipeline Drawing(steps=1).
    checkpoint: folder for log.csv, log.jsonl and the state to resume from. Ctrl-C ends training and keeps the best so
    far.
    Raises TextsError, SiteError, OptionError, ActivationError, MissingExtraError. Warns if another Steering is applied
    to the model; the new one is then learned on top of it.
    """
    wanted = objective if isinstance(objective, Objective) else objective_named(objective, {})
    folder = Path(checkpoint) if checkpoint is not None else None
    asked = _Asked(wanted, start, Plan(steps, optimiser, held_out, wanted.sparsity), folder, running)
    asked.check()
    subject = subject_of(model, tokenizer)
    examples = subject.examples(reading, training=True)
    if wanted.reads_logits:
        examples.pad_token()  # raises for a subject without tokens
    chosen = asked.sites(subject, sites)
    steered = check_unsteered(subject.module, "training")
    with ranks_here(subject.module, distributed=running.distributed) as ranks:
        if isinstance(wanted, AsksFirst):
            answering = Answering(
                subject.module, text_tokenizer(tokenizer), subject.identity.fingerprint, examples.reading.chat, folder,
                examples.batch_size, progress=running.progress and ranks.first,
            )  # fmt: skip
            source, control, target = ranks.from_first(lambda: _drawn(wanted, answering, source, control, target))
        sets = check_sets(source, control, target, control_needed=wanted.needs_control, paired=wanted.paired)
        examples.check(sets)
        if sets.spans is not None:
            raise OptionError("training learns from whole texts: remove the spans of the source")
        run = Run(examples, chosen, sets.as_dict(), folder, running, ranks, tuple(steered))
        return _trained(asked, run, subject.identity)


class _Asked(NamedTuple):
    """The arguments of `train` besides the model, its sites and its texts."""

    objective: Objective
    start: Start
    plan: Plan
    folder: Path | None
    running: Running

    def check(self) -> None:
        self.plan.check()
        if not isinstance(self.start, Steering) and self.start not in ("fitted", "scratch"):
            raise OptionError(f"start must be 'fitted', 'scratch' or a Steering, got {self.start!r}")
        if self.running.tensorboard and self.folder is None:
            raise OptionError("tensorboard writes into the checkpoint folder: give checkpoint as well")
        if isinstance(self.start, Steering):
            self.objective.learned([rule for rule in self.start.rules if rule.weight > 0])

    def sites(self, subject: Subject, patterns: SitePatterns) -> list[Site]:
        """Return the sites to train: those of the Steering to start from, if there is one."""
        if not isinstance(self.start, Steering):
            return subject.sites(patterns)
        return [rule.site for rule in self.start.rules_on(subject) if rule.weight > 0]

    def id(self, run: Run) -> str:
        """Return a digest of everything that training depends on."""
        module, sites = run.examples.module, [asdict(site) for site in run.sites]
        dtype = str(next(module.parameters()).dtype)
        texts = {name: list(map(as_json, members)) for name, members in run.texts.items()}
        what = [fingerprint(module), dtype, sites, texts, run.examples.depends((), ())]
        start = self.start.digest() if isinstance(self.start, Steering) else self.start
        own = [repr(self.objective), start, self.plan]
        return hashlib.sha256(json.dumps([what, own]).encode()).hexdigest()[:16]

    def rules(self, run: Run, pooled: dict[str, dict[Site, Tensor]]) -> list[Rule]:
        """Return the rules that training starts from, ready to be learned."""
        if isinstance(self.start, Steering):
            own = [rule for rule in self.start.rules if rule.weight > 0]
            rules = [rule._replace(site=site) for rule, site in zip(own, run.sites, strict=True)]
        else:
            sets = [{name: found[site] for name, found in pooled.items()} for site in run.sites]
            rules = [
                self.objective.first_rule(site, own, self.start) for site, own in zip(run.sites, sets, strict=True)
            ]
        parts = self.objective.learned(rules)
        found = [learnable(rule, device_of(run.examples.module, rule.site.path), parts) for rule in rules]
        if self.plan.sparsity > 0 and not all(isinstance(rule.transform, Lineas) for rule in found):
            raise OptionError("sparsity makes 'lineas' transforms sparse; start from those, or give sparsity=0")
        return found

    def settings(self, rules: list[Rule], learned: Learned, run: Run, split: dict[str, list[Content]]) -> JsonObject:
        """Return what the Steering's settings say about how it was made."""
        looks = [row for row in learned.rows if row.held_loss is not None and row.step == learned.best_step]
        return {
            "transform": rules[0].transform.name,
            "regulator": rules[0].regulator.name,
            "texts": {name: len(members) for name, members in split.items()},
            "examples": kind_of(split["source"][0]),
            "reading": run.examples.as_dict(),
            "fitted": f"end to end: {self.objective.name}",
            **({"read while steered at": list[Json](run.steered)} if run.steered else {}),
            "training": {
                **self.objective.as_dict(),
                "start": "steering" if isinstance(self.start, Steering) else self.start,
                "optimiser": self.plan.optimiser._asdict(),
                "held_out": self.plan.held_out._asdict(),
                "steps": learned.steps,
                "best_step": learned.best_step,
                "stopped": learned.stopped,
                "support": support(rules),
                "separation": looks[0].separation if looks else None,
            },
        }


def _drawn(
    objective: AsksFirst,
    answering: Answering,
    source: Sequence[Given],
    control: Sequence[Given],
    target: Sequence[Given] | None,
) -> tuple[list[Content], list[Content], list[Content]]:
    """Return source, control and target from the model's answers to the source's questions, or to everyday ones."""
    if target is not None:
        raise OptionError(f"{objective.name} draws its target from the model itself: remove target=")
    found = objective.drawn(answering, source or everyday_questions(), control)
    return found["source"], found["control"], found["target"]


def _trained(asked: _Asked, run: Run, model: ModelIdentity) -> Steering:
    objective, identity = asked.objective, asked.id(run)
    run.ranks.check_same(identity)
    split = held_apart(run.texts, asked.plan.held_out, paired=objective.paired)
    pooled = {name: run.collect(split[name]) for name in ("source", "control", "target") if split[name]}
    rules = asked.rules(run, pooled)
    log = Log(asked.folder if run.ranks.first else None, tensorboard=asked.running.tensorboard)
    task = TrainingTask(
        run.work(), rules, split, [pooled["target"][rule.site] for rule in rules], asked.plan, run.ranks,
        run.batches, run.examples,
    )  # fmt: skip
    file = asked.folder / f"state-{identity}.safetensors" if asked.folder is not None else None
    learner, progress = objective.learner(task), asked.running.progress and run.ranks.first
    try:
        found = learn(learner, file=file, log=log, progress=progress)
        learned = run.ranks.from_first(lambda: found)
    finally:
        learner.close()
    _warn(learned, rules)
    rules = objective.finish(settled(rules, learned.values), pooled)
    return Steering(rules, model, asked.settings(rules, learned, run, split))


def _warn(learned: Learned, rules: list[Rule]) -> None:
    dead = learned.rows[-1].dead if learned.rows else 0
    if dead:
        warnings.warn(
            f"the regulator is 0 on every source token at {dead} of {len(rules)} sites: nothing is steered there; "
            "a smaller control_weight or regulator_rate prevents this", DsasWarning, stacklevel=4,
        )  # fmt: skip
    said = {
        "interrupted": f"interrupted after {learned.steps} steps: this is the best so far (step {learned.best_step})",
        "diverged": f"the loss is not finite after {learned.steps} steps: this is the best before it "
        f"(step {learned.best_step}); lower the rates",
    }
    if learned.stopped in said:
        warnings.warn(said[learned.stopped], DsasWarning, stacklevel=4)
    elif learned.best_step == 0:
        warnings.warn(
            "no step had a lower loss on held-out texts than the start, so the start is returned; try a "
            "smaller control_weight or lower rates", DsasWarning, stacklevel=4,
        )  # fmt: skip
