"""What the tests with vLLM share: a tiny model that its CPU attention takes, Steerings of every kind, a reference."""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from makers import random_steering
from torch import Tensor

import dsas
from dsas.regulators.cast import similarity
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

# Before vLLM is imported: one thread bound to nothing, the engine in the test's own process.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
NAMES = ("detox", "topic", "line")
LONG = "The quick brown fox jumps over the lazy dog and goes on to jump over everything else that lies in its way. "
PROMPTS = (LONG, LONG + "So?", "Who goes there, friend or foe?", "Hi")
NEW_TOKENS = 8
LAYERS = "model.layers"


class Ask(NamedTuple):
    """The Steerings that a request names, in order, with its strengths."""

    names: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()

    def extra_args(self) -> dict[str, Any] | None:
        """Return the request's arguments: one name and number where there is one."""
        if not self.names:
            return None
        one = len(self.names) == 1
        return {
            "dsas_steering": self.names[0] if one else list(self.names),
            "dsas_strength": self.strengths[0] if one else list(self.strengths),
        }


ASKS = (
    Ask(),
    Ask(("detox",), (0.5,)),
    Ask(("detox",), (1.0,)),
    Ask(("topic",), (0.7,)),
    Ask(("line",), (1.0,)),
    Ask(("topic", "detox"), (1.0, 0.3)),
    Ask(("detox", "topic"), (0.3, 1.0)),
    Ask(("detox",), (0.0,)),
)

TONES = (  # with the two Steerings whose evidence adds up, and fades each at its own rate
    Ask(),
    Ask(("tone",), (0.5,)),
    Ask(("mood",), (1.0,)),
    Ask(("detox",), (1.0,)),
    Ask(("tone", "mood"), (1.0, 0.3)),
    Ask(("detox", "tone"), (0.3, 1.0)),
)


METHODS = (  # with Steerings of methods that read several projections, or places, or roles, or the prompt
    Ask(),
    Ask(("plane",), (1.0,)),
    Ask(("place",), (0.7,)),
    Ask(("role",), (1.0,)),
    Ask(("plane", "place"), (0.5, 1.0)),
    Ask(("role", "plane"), (0.3, 0.8)),
    Ask(("cast",), (1.0,)),
    Ask(("cast", "plane"), (0.5, 0.5)),
)


def write_folders(root: Path) -> Path:
    """Write a model and Steerings that between them have every column, at residual, norm, attention and MLP sites."""
    model = tiny_model("llama", head_dim=32)
    model.save_pretrained(root / "model")  # pyright: ignore[reportAttributeAccessIssue]
    tiny_tokenizer().save_pretrained(root / "model")
    generator = torch.Generator().manual_seed(7)
    source, target = (torch.randn(12, WIDTH, generator=generator) + shift for shift in (0.0, 0.5))
    random_steering(model, "residual", seed=1).save_pretrained(root / "detox")
    norms = {"transform": dsas.Lineas.fit(source, target), "regulator": dsas.Constant(0.7), "weight": 0.8}
    random_steering(model, ["norm", "layers.1"], seed=2, **norms).save_pretrained(root / "topic")
    bounded = {"transform": dsas.TRANSFORMS["linear-act"].fit(source, target)}
    random_steering(model, ["mlp", "attention", "layers.2"], seed=3, **bounded).save_pretrained(root / "line")
    for seed, name, memories in (
        (6, "tone", (1.0, 1.0, 1.0, 0.9, 0.5, 0.0)),
        (8, "mood", (0.9, 0.99, 0.0, 0.9, 1.0, 0.8)),
    ):
        plain = random_steering(model, ["residual", "mlp"], seed=seed)
        numbers = zip(plain.rules, range(6), memories, strict=True)
        rules = [rule._replace(regulator=adding(generator, prior, memory)) for rule, prior, memory in numbers]
        dsas.Steering(rules, plain.model).save_pretrained(root / name)
    made = {"plane": planes(generator), "place": places(generator), "role": roles(generator)}
    for name, rules in {**made, "cast": casts(model, generator)}.items():
        dsas.Steering(rules, plain.model).save_pretrained(root / name)
    random_steering(model, "layers.0", seed=4).save_pretrained(root / "later")
    random_steering(model, "layers.0", seed=5).save_pretrained(root / "latest")
    return root


def planes(generator: torch.Generator) -> list[dsas.Rule]:
    """Return rules of every transform that reads projections and every regulator of several."""

    def vector(size: float = 1.0) -> Tensor:
        return size * torch.randn(WIDTH, generator=generator)

    first, second = torch.linalg.qr(torch.randn(WIDTH, 2, generator=generator)).Q.T
    logistic, step = dsas.Logistic(vector(0.3), torch.tensor(0.2)), dsas.HalfSpace(vector(), torch.tensor(0.3))
    neurons, probe = dsas.Posterior(vector(), vector(), vector()), dsas.Rectified(vector(0.2), torch.tensor(0.5))
    ablation, rotation = dsas.Ablation(first, torch.tensor(0.7)), dsas.Rotation(first, second, torch.tensor(1.1))
    evidence = dsas.Evidence(vector(), torch.tensor(0.2), torch.tensor(0.1), 4.0, 0.9)
    rules = [
        (f"{LAYERS}.0", ablation, step),
        (f"{LAYERS}.1", rotation, dsas.Product([logistic, probe])),
        (f"{LAYERS}.2", dsas.Addition(vector()), dsas.Product([neurons, step, dsas.Constant(0.8)])),
        (f"{LAYERS}.1.mlp", dsas.Addition(vector()), dsas.Product([step, evidence, neurons])),
    ]
    return [dsas.Rule(dsas.Site(path), *methods, 0.9) for path, *methods in rules]


def places(generator: torch.Generator) -> list[dsas.Rule]:
    """Return rules that look at places in the prompt and the answer."""
    logistic = dsas.Logistic(0.3 * torch.randn(WIDTH, generator=generator), torch.tensor(0.2))
    late = dsas.Product([logistic, dsas.Schedule("generated", 1, 6)])
    regulators = [dsas.Schedule("prompt", 2, 40), late, dsas.Schedule("generated")]
    vectors = torch.randn(3, WIDTH, generator=generator)
    pairs = zip(vectors, regulators, strict=True)
    return [dsas.Rule(dsas.Site(f"{LAYERS}.{n}"), dsas.Addition(v), one) for n, (v, one) in enumerate(pairs)]


def casts(model: Any, generator: torch.Generator) -> list[dsas.Rule]:
    """Return rules that decide by the prompt, at thresholds between what the prompts say, alone and in a product."""
    tokenizer, rules = tiny_tokenizer(), []
    logistic = dsas.Logistic(0.3 * torch.randn(WIDTH, generator=generator), torch.tensor(0.2))
    for number in range(3):
        condition, vector = torch.randn(2, WIDTH, generator=generator)
        path, said, seen = f"{LAYERS}.{number}", [], []
        hook = model.get_submodule(path).register_forward_hook(
            lambda _module, _args, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        for prompt in PROMPTS:
            with torch.no_grad():
                model(torch.tensor([tokenizer(prompt)["input_ids"]]))
            said.append(float(similarity(seen[-1].reshape(-1, WIDTH)[1:].mean(0), condition)))
        hook.remove()
        low, high = sorted(said)[1:3]
        cast = dsas.Cast(condition, torch.tensor((low + high) / 2), above=number != 1)
        regulator = dsas.Product([cast, logistic]) if number == 2 else cast
        rules.append(dsas.Rule(dsas.Site(path), dsas.Addition(vector), regulator))
    held = dsas.Held(adding(generator, 4.0, 0.9))
    added = dsas.Addition(torch.randn(WIDTH, generator=generator))
    return [*rules, dsas.Rule(dsas.Site(f"{LAYERS}.1.mlp"), added, held)]


def roles(generator: torch.Generator) -> list[dsas.Rule]:
    """Return rules that look at roles and what is in brackets, by letters that the prompts and answers have."""
    tokenizer = tiny_tokenizer()
    named = (("user", "T", False), ("assistant", "k", False), ("thinking", "o", False), ("thinking", "e", True))
    marks = [[name, [tokenizer(letter)["input_ids"][-1]], ends] for name, letter, ends in named]
    turns = dsas.Turns(marks, only=["assistant"], leave_out=["thinking"])
    vectors = torch.randn(2, WIDTH, generator=generator)
    return [dsas.Rule(dsas.Site(f"{LAYERS}.{n}"), dsas.Addition(v), turns) for n, v in enumerate(vectors)]


def adding(generator: torch.Generator, prior: float, memory: float) -> dsas.Evidence:
    """Return evidence of a random direction."""
    theta = torch.randn(WIDTH, generator=generator)
    return dsas.Evidence(theta, torch.tensor(0.2), torch.tensor(0.1), prior, memory)


class Wanted(NamedTuple):
    """What the reference generates: tokens, and the log-probabilities (token, vocabulary) that they were drawn from."""

    tokens: list[int]
    log_probabilities: Tensor


EVERY = (*NAMES, "tone", "mood", "plane", "place", "role", "cast", "later", "latest")


class Reference:
    """The same model in transformers, steered by `Steering.apply`."""

    def __init__(self, root: Path, names: Sequence[str] = EVERY, model: Any = None) -> None:
        self.model: Any = tiny_model("llama", head_dim=32) if model is None else model
        self.tokenizer = tiny_tokenizer()
        self.steerings = {name: dsas.Steering.from_pretrained(root / name) for name in names}

    @cache  # noqa: B019 - lives as long as the tests of one module
    def generate(self, prompt: str, ask: Ask, new_tokens: int = NEW_TOKENS) -> Wanted:
        """Return the greedy continuation of one prompt alone."""
        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]])
        with ExitStack() as stack, torch.no_grad():
            for name, strength in zip(*ask, strict=True):
                steering, length = self.steerings[name], ids.shape[1]
                stack.enter_context(steering.apply(self.model, strength, record=False, prompt_tokens=length))
            everything = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, eos_token_id=None
            )
            logits = self.model(everything).logits[0, ids.shape[1] - 1 : -1]
        return Wanted(everything[0, ids.shape[1] :].tolist(), torch.log_softmax(logits, -1))

    def scores(self, prompt: str, ask: Ask) -> list[float]:
        """Return the log-probability of each token of a prompt but the first."""
        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]])
        with ExitStack() as stack, torch.no_grad():
            for name, strength in zip(*ask, strict=True):
                stack.enter_context(self.steerings[name].apply(self.model, strength, record=False))
            found = torch.log_softmax(self.model(ids).logits[0, :-1], -1)
        return found.gather(-1, ids[0, 1:, None]).flatten().tolist()

    def values(self, prompt: str, ask: Ask, new_tokens: int) -> list[float]:
        """Return, of the one Steering, the mean over its sites of weight x regulator of every token that was read."""
        read = torch.tensor(
            [[*self.tokenizer(prompt)["input_ids"], *self.generate(prompt, ask, new_tokens).tokens[:-1]]]
        )
        with self.steerings[ask.names[0]].apply(self.model, ask.strengths[0]) as applied, torch.no_grad():
            self.model(read)
            return (applied.trace().strengths[:, 0].mean(0) / ask.strengths[0]).tolist()

    def raised(self, prompt: str, ask: Ask, first: int, strength: float, new_tokens: int) -> list[int]:
        """Return the greedy continuation with the answer's token `first` and all after it steered otherwise."""
        ids, cache, found = self.tokenizer(prompt)["input_ids"], None, []
        for number in range(new_tokens):
            at = ask.strengths[0] if number <= first else strength  # the pass that reads token number - 1
            with self.steerings[ask.names[0]].apply(self.model, at, record=False), torch.no_grad():
                out = self.model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, [int(out.logits[0, -1].argmax())]
            found += ids
        return found

    def applied(self, prompt: str, ask: Ask, new_tokens: int = NEW_TOKENS) -> dict[str, float]:
        """Return the mean over all tokens read and all sites of what each Steering that acts applies."""
        ids = self.tokenizer(prompt)["input_ids"]
        read = torch.tensor([[*ids, *self.generate(prompt, ask, new_tokens).tokens[:-1]]])
        with ExitStack() as stack, torch.no_grad():
            pairs = [(name, strength) for name, strength in zip(*ask, strict=True) if strength > 0]
            all_applied = {
                name: stack.enter_context(self.steerings[name].apply(self.model, strength, prompt_tokens=len(ids)))
                for name, strength in pairs
            }
            self.model(read)
            return {name: float(applied.trace().strengths.mean()) for name, applied in all_applied.items()}


@contextmanager
def running(root: Path, *, names: Sequence[str] = NAMES, **options: Any) -> Iterator[Any]:
    """Run an `LLM` in this process with these Steerings; none is the engine as vLLM has it."""
    os.environ.update(SETTINGS)
    from vllm import LLM  # pyright: ignore[reportMissingImports]
    from vllm.distributed import cleanup_dist_env_and_memory  # pyright: ignore[reportMissingImports]

    from dsas.serving import engine

    ours = {name: options.pop(name) for name in ("spare", "reports") if name in options}
    folders = [str(root / name) for name in names]
    extra = engine.arguments(str(root / "model"), folders, together=2, **ours) if names else {}
    usual = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 192,
        "max_num_seqs": 16,
        "block_size": 32,
        "kv_cache_memory_bytes": 64 << 20,
        "distributed_executor_backend": "uni",
        "disable_log_stats": False,
    }
    llm = LLM(str(root / "model"), **{**usual, **options}, **extra)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def generate(
    llm: Any,
    work: Sequence[tuple[Any, Ask]],
    *,
    new_tokens: int = NEW_TOKENS,
    logprobs: int = 5,
    report: bool = False,
    lora_request: Any = None,
) -> Any:
    """Return the outputs of requests that run at once, greedily; lora_request: the adapter of each."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    more = {"dsas_report": True} if report else {}
    parameters = [
        SamplingParams(
            temperature=0,
            max_tokens=new_tokens,
            logprobs=logprobs,
            ignore_eos=True,
            extra_args={**(ask.extra_args() or {}), **more} or None,
        )
        for _, ask in work
    ]
    prompts = [prompt for prompt, _ in work]
    return llm.generate(prompts, parameters, lora_request=lora_request, use_tqdm=False)


def worst_difference(output: Any, wanted: Wanted) -> float:
    """Return the largest difference of log-probabilities; the tokens must be the same."""
    got = output.outputs[0]
    assert list(got.token_ids) == wanted.tokens
    return max(
        abs(value.logprob - float(wanted.log_probabilities[place, token]))
        for place, values in enumerate(got.logprobs)
        for token, value in values.items()
    )
