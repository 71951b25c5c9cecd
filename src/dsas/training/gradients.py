"""Language: `dsas.train`; texts, or prompts of a pipeline, in, and a learned Steering out.

    lineas     T(t) = w t + b at every site, on every token; loss: transport from source to target
    e2e-dsas   the same, and with it a regulator h at every site; loss: transport + gamma * control
    preference what e2e-dsas learns; loss: preferring target to source by what the model would say + gamma * control

Source: LinEAS (arXiv 2503.10679), E2E-DSAS (arXiv 2512.03661) and BiPO (arXiv 2406.00045). Left out: learning one site
after another.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from threadpoolctl import threadpool_limits
from torch import Tensor

from dsas.errors import DsasWarning, OptionError
from dsas.fitting.method_names import regulator_fit
from dsas.model.device_map import device_of
from dsas.model.drawing import Drawing
from dsas.model.identity import fingerprint
from dsas.model.reading import Reading
from dsas.model.sites import Site, SitePatterns
from dsas.model.subject import Examples, subject_of
from dsas.regulators.base import FittedRegulator
from dsas.regulators.constant import Constant
from dsas.runtime.rule import Rule
from dsas.steering.steering import Steering
from dsas.training.learner import Learner
from dsas.training.learning import GATES, Gate, identity_rule, learnable, scratch, settled, support
from dsas.training.loop import Learned, learn
from dsas.training.plan import HeldOut, Objective, Optimiser, Plan
from dsas.training.ranks import ranks_here
from dsas.training.records import Log
from dsas.training.run import Run
from dsas.training.sets import checked, held_apart
from dsas.transforms.lineas import Lineas

Name = Literal["lineas", "e2e-dsas", "preference"]
GAMMA: dict[str, float] = {"lineas": 0.0, "e2e-dsas": 0.3, "preference": 3.0}
Start = Literal["fitted", "scratch"] | Steering


def train(
    model: Any,
    tokenizer: Any = None,
    *,
    source: Sequence[str],
    target: Sequence[str],
    control: Sequence[str] = (),
    objective: Name = "lineas",
    gate: Gate = "sigmoid",
    gamma: float | None = None,
    sparsity: float = 0.0,
    beta: float = 0.1,
    per_step: int = 16,
    steps: int = 50,
    start: Start = "fitted",
    regulator: str = "constant",
    threshold: float = 0.75,
    sites: SitePatterns = "norm",
    optimiser: Optimiser = Optimiser(),
    held_out: HeldOut = HeldOut(),
    reading: Reading | Drawing | None = None,
    checkpointing: bool = False,
    checkpoint: str | Path | None = None,
    tensorboard: bool = False,
    seed: int = 0,
    distributed: bool = True,
    progress: bool = True,
) -> Steering:
    """Learn a Steering for `model` by gradients through it; the model's weights neither change nor get gradients.

    model: a language model, which goes with its tokenizer; or a diffusers pipeline, and gradients flow through all its
    denoising steps, of which there should be few.
    source, target, control: as in `dsas.fit`, at least 4 texts each; control may be left out where nothing reads it.
    objective: "lineas" learns the transforms, at work on every token; "e2e-dsas" also a regulator at every site, of the
    form `gate`: "sigmoid", or "relu", which is exactly 0 off the concept. "preference", of language models, learns the
    same to make target[i] likelier than source[i], such as two continuations of one prompt, and to leave what the model
    says of control as it is.
    gamma: weight >= 0 of the control term; 0.3 unless given, where the transport term is a sum over source texts, and 3
    for preference. sparsity: weight >= 0 of the sparse group lasso on the transforms; 0 is dense.
    steps: of the full batch, or for preference of `per_step` pairs and as many control texts. beta: of preference,
    one over the nats by which a pair is preferred enough.
    start: where regulators that are learned start: "fitted" in closed form or "scratch" (1/2 everywhere); the
    transforms start at the identity. Or a Steering of `lineas` transforms to go on from: its sites and, for "lineas",
    its regulators stay as they are. For "preference" also one that adds vectors, such as `0.1 * fitted` for what
    `dsas.fit` gave: vectors and regulators are learned on from there, or with constant regulators vectors alone.
    regulator: with "lineas", a regulator (see `dsas.fit`) fitted in closed form and put before the learned transforms,
    where its accuracy is at least `threshold`; the transforms are learned without it.
    reading: `batch_size` is the size of a micro-batch: it sets memory and time, and leaves the gradient as it is. When
    not given, Reading(batch_size=32), or of a pipeline Drawing(steps=1).
    checkpointing: compute activations again in the backward pass instead of keeping them; not of pipelines.
    checkpoint: folder for log.csv, log.jsonl and the state to resume from. tensorboard: write events there too.
    seed: of the split into learned-from and held-out texts, and of the order in which pairs come. Ctrl-C ends training
    and keeps the best so far.
    distributed: under torchrun, and wherever torch.distributed is initialised, all ranks train one Steering together,
    each on its share of the micro-batches; all return it, and the first writes files. False: each process its own.
    Raises TextsError, SiteError, OptionError, ActivationError, MissingExtraError.
    """
    weight = GAMMA.get(objective, 0.0) if gamma is None else gamma
    wanted = Objective(weight, sparsity, beta, per_step)
    options = _Options(objective, gate, wanted, steps, start, regulator, threshold, optimiser, held_out, seed)
    options.check()
    subject = subject_of(model, tokenizer)
    module = subject.module
    paired = objective == "preference"
    examples = subject.examples(reading, training=True)
    if paired:
        examples.pad_token()  # refuses a subject that says nothing
    texts = checked(source, target, control, needed=options.together or regulator != "constant", paired=paired)
    if isinstance(start, Steering):
        start.model.compare(subject.identity)
    found = [r.site for r in start.rules if r.weight > 0] if isinstance(start, Steering) else subject.sites(sites)
    folder = Path(checkpoint) if checkpoint is not None else None
    if tensorboard and folder is None:
        raise OptionError("tensorboard writes into the checkpoint folder: give checkpoint as well")
    split = held_apart(texts, held_out.share, seed, paired=paired)
    with ranks_here(module, distributed=distributed) as ranks:
        run = Run(examples, found, texts, folder, progress and ranks.first, ranks)
        identity = options.id(run, texts)
        ranks.check_same(identity)
        pooled = {name: run.collect(split[name]) for name in ("source", "control", "target") if split[name]}
        rules = options.start_rules(run, pooled)
        log = Log(folder if ranks.first else None, tensorboard=tensorboard)
        work, goals = run.work(checkpointing=checkpointing), [pooled["target"][rule.site] for rule in rules]
        make = partial(run.preference, seed=seed) if paired else run.trainer
        learned = _learn(make(work, rules, goals, split, options.plan()), run, identity, log)
    _warn(learned, rules)
    rules = options.finish(settled(rules, learned.values), pooled)
    return Steering(rules, subject.identity, options.said(rules, learned, split, examples))


class _Options(NamedTuple):
    """What `train` was asked for besides model and texts."""

    objective: Name
    gate: Gate
    wanted: Objective
    steps: int
    start: Start
    regulator: str
    threshold: float
    optimiser: Optimiser
    held_out: HeldOut
    seed: int

    @property
    def together(self) -> bool:
        return self.objective != "lineas"

    def check(self) -> None:
        if self.objective not in get_args(Name) or self.gate not in GATES:
            raise OptionError(
                f"objective must be one of {get_args(Name)} and gate one of {tuple(GATES)}, got {self.objective!r} and "
                f"{self.gate!r}"
            )
        self.wanted.check()
        if not (self.steps >= 1 and 0 <= self.threshold <= 1):
            raise OptionError(f"expected steps >= 1 and threshold from 0 to 1, got {self.steps} and {self.threshold}")
        if not isinstance(self.start, Steering) and self.start not in ("fitted", "scratch"):
            raise OptionError(f"start must be 'fitted', 'scratch' or a Steering, got {self.start!r}")
        if self.regulator != "constant" and (self.together or isinstance(self.start, Steering)):
            raise OptionError(
                f"regulator={self.regulator!r} is put before transforms that 'lineas' learned from the identity; "
                "the other objectives learn their own (gate), and a Steering to start from has its own"
            )
        regulator_fit(self.regulator)
        self.optimiser.check()
        self.held_out.check()

    def plan(self) -> Plan:
        wanted = self.wanted if self.together else self.wanted._replace(gamma=0.0)
        return Plan(wanted, self.steps, self.optimiser, self.held_out)

    def start_rules(self, run: Run, pooled: dict[str, dict[Site, Tensor]]) -> list[Rule]:
        """Return the rules that training starts from, ready to be learned."""
        if isinstance(self.start, Steering):
            rules = [rule for rule in self.start.rules if rule.weight > 0]
        else:
            rules = [self._start(site, *(pooled[name][site] for name in pooled)) for site in run.sites]
        preferring = self.objective == "preference"
        always = preferring and all(isinstance(rule.regulator, Constant) for rule in rules)
        given: dict[str, bool] = {"regulator": self.together and not always, "vectors": preferring}
        found = [learnable(rule, device_of(run.examples.module, rule.site.path), **given) for rule in rules]
        if self.wanted.sparsity > 0 and not all(isinstance(rule.transform, Lineas) for rule in found):
            raise OptionError("sparsity makes 'lineas' transforms sparse; start from those, or give sparsity=0")
        return found

    def _start(self, site: Site, source: Tensor, *others: Tensor) -> Rule:
        dim = source.shape[1]
        rule = identity_rule(Rule(site, Constant(), Constant()), dim)  # pyright: ignore[reportArgumentType]
        if not self.together:
            return rule
        if self.start == "scratch":
            return rule._replace(regulator=scratch(self.gate, dim))
        with threadpool_limits(1, user_api="blas"):
            return rule._replace(regulator=GATES[self.gate].fit(source, *others).regulator)

    def finish(self, rules: list[Rule], pooled: dict[str, dict[Site, Tensor]]) -> list[Rule]:
        """Return the learned rules with the regulator that was asked for before them."""
        if self.regulator == "constant":
            return rules
        make, out = regulator_fit(self.regulator), []
        with threadpool_limits(1, user_api="blas"):
            for rule in rules:
                fitted: FittedRegulator = make(*(pooled[name][rule.site] for name in ("source", "control", "target")))
                good = fitted.accuracy is None or fitted.accuracy >= self.threshold
                out.append(
                    rule._replace(regulator=fitted.regulator, accuracy=fitted.accuracy, weight=1.0 if good else 0.0)
                )
        if not any(rule.weight for rule in out):
            warnings.warn(f"no site reaches threshold={self.threshold}: nothing is steered", DsasWarning, stacklevel=3)
        return out

    def id(self, run: Run, texts: dict[str, list[str]]) -> str:
        """Return a digest of everything that training depends on."""
        start = self.start.digest() if isinstance(self.start, Steering) else self.start
        dtype = str(next(run.examples.module.parameters()).dtype)
        what = [fingerprint(run.examples.module), dtype, list(map(repr, run.sites)), texts, run.read()]
        own = self._replace(start=start)
        return hashlib.sha256(json.dumps([what, own]).encode()).hexdigest()[:16]

    def said(
        self, rules: list[Rule], learned: Learned, split: dict[str, list[str]], examples: Examples
    ) -> dict[str, Any]:
        looks = [row for row in learned.rows if row.held_loss is not None and row.step == learned.best_step]
        return {
            "transform": rules[0].transform.name,
            "regulator": rules[0].regulator.name,
            "texts": {name: len(members) for name, members in split.items()},
            "reading": examples.as_dict(),
            "fitted": f"end to end: {self.objective}",
            "training": {
                **self.plan().objective.as_dict(paired=self.objective == "preference"),
                "start": "steering" if isinstance(self.start, Steering) else self.start,
                "optimiser": self.optimiser._asdict(),
                "held_out": self.held_out._asdict(),
                "seed": self.seed,
                "steps": learned.steps,
                "best_step": learned.best_step,
                "stopped": learned.stopped,
                "support": support(rules),
                "separation": looks[0].separation if looks else None,
            },
        }


def _learn(learner: Learner, run: Run, identity: str, log: Log) -> Learned:
    try:
        file = run.folder / f"state-{identity}.safetensors" if run.folder is not None else None
        learned = learn(learner, file=file, log=log, progress=run.progress)
        return run.ranks.from_first(lambda: learned)
    finally:
        learner.close()


def _warn(learned: Learned, rules: list[Rule]) -> None:
    dead = learned.rows[-1].dead if learned.rows else 0
    if dead:
        warnings.warn(
            f"the regulator is 0 on every source token at {dead} of {len(rules)} sites: nothing is steered there; a "
            "smaller gamma or regulator_rate keeps it alive", DsasWarning, stacklevel=3,
        )  # fmt: skip
    said = {
        "interrupted": f"interrupted after {learned.steps} steps: this is the best so far, of step {learned.best_step}",
        "diverged": f"the loss is no number after {learned.steps} steps: this is the best before it, of step "
        f"{learned.best_step}; lower the rates",
    }
    if learned.stopped in said:
        warnings.warn(said[learned.stopped], DsasWarning, stacklevel=3)
    elif learned.best_step == 0:
        warnings.warn(
            "no step had a lower loss on held-out texts than the start, so what is returned is the start; a smaller "
            "gamma or lower rates let it move", DsasWarning, stacklevel=3,
        )  # fmt: skip
