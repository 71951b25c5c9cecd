"""With vLLM: every request gets what transformers and `Steering.apply` give it alone, whatever runs beside it."""

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from engines import (
    ASKS,
    LONG,
    METHODS,
    NAMES,
    NEW_TOKENS,
    PROMPTS,
    TONES,
    Ask,
    Reference,
    generate,
    running,
    worst_difference,
    write_folders,
)
from makers import random_steering

from dsas.errors import ModelMismatchError, OptionError
from dsas.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.vllm
WORK = [(prompt, ask) for ask in ASKS for prompt in PROMPTS]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def reference(root: Path) -> Reference:
    return Reference(root)


def check(llm: Any, reference: Reference, record: Any, work: Sequence[tuple[str, Ask]] = WORK) -> list[Any]:
    """Run all requests twice, the second time over whatever the first has left in the cache."""
    first, second = generate(llm, work), generate(llm, work)
    wanted = [reference.generate(prompt, ask) for prompt, ask in work]
    worst = max(worst_difference(*pair) for outputs in (first, second) for pair in zip(outputs, wanted, strict=True))
    record("worst log-probability difference", worst)
    record("tokens compared", 2 * len(work) * NEW_TOKENS)
    assert worst < TOLERANCE
    return second


CHUNKS = pytest.mark.parametrize("chunk", [32, 512], ids=["chunked", "whole"])
CACHES = pytest.mark.parametrize("cached", [True, False], ids=["prefix-cache", "no-prefix-cache"])
MODES = pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])


@CHUNKS
@CACHES
@MODES
def test_mixed_requests_agree_with_the_reference(
    root: Path, reference: Reference, record_property: Any, *, eager: bool, cached: bool, chunk: int
) -> None:
    options = {"enforce_eager": eager, "enable_prefix_caching": cached, "max_num_batched_tokens": chunk}
    agrees(root, reference, record_property, cached=cached, options=options)


@CHUNKS
@CACHES
@MODES
def test_two_workers_that_share_every_layer_agree(
    root: Path, reference: Reference, record_property: Any, *, eager: bool, cached: bool, chunk: int
) -> None:
    options = {"enforce_eager": eager, "enable_prefix_caching": cached, "max_num_batched_tokens": chunk}
    options |= {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    agrees(root, reference, record_property, cached=cached, options=options)


def agrees(root: Path, reference: Reference, record: Any, *, cached: bool, options: dict[str, Any]) -> None:
    with running(root, **options) as llm:
        second = check(llm, reference, record)
    hits = sum(output.num_cached_tokens or 0 for output in second)
    assert (hits > 0) == cached


@MODES
def test_requests_that_are_preempted_agree_too(
    root: Path, reference: Reference, record_property: Any, *, eager: bool
) -> None:
    little = {"num_gpu_blocks_override": 9, "enable_prefix_caching": False, "max_num_seqs": 8}
    with running(root, enforce_eager=eager, **little) as llm:
        work = [(LONG[:60], ask) for ask in ASKS]
        outputs = generate(llm, work, new_tokens=40)
        wanted = [reference.generate(prompt, ask, 40) for prompt, ask in work]
        assert max(worst_difference(*pair) for pair in zip(outputs, wanted, strict=True)) < TOLERANCE
        counted = {metric.name: metric for metric in llm.get_metrics()}["vllm:num_preemptions"].value
    record_property("preemptions", counted)
    assert counted > 0


EVERYONE = ("detox", "tone", "mood")  # tables of both kinds of rows


@pytest.mark.parametrize(
    "options",
    [
        {"enforce_eager": True, "max_num_batched_tokens": 32},
        {"enforce_eager": False, "max_num_batched_tokens": 32},
        {"enforce_eager": False, "enable_prefix_caching": False},
        {"enforce_eager": False, "tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
        {"enforce_eager": False, "pipeline_parallel_size": 2, "distributed_executor_backend": "mp"},
    ],
    ids=["eager-chunked", "compiled-chunked", "compiled-no-prefix-cache", "tensor-compiled", "pipeline-compiled"],
)
def test_evidence_adds_up_as_in_the_reference_and_is_told(
    root: Path, reference: Reference, record_property: Any, options: dict[str, Any]
) -> None:
    from dsas.serving import engine

    work = [(prompt, ask) for ask in TONES for prompt in PROMPTS]
    with running(root, names=EVERYONE, reports=True, **options) as llm:
        second = check(llm, reference, record_property, work)
        told = [(prompt, ask) for prompt, ask in work if ask.names and prompt not in PROMPTS[:2]]  # fits in no block
        outputs = generate(llm, told, report=True)
        reports = [engine.report(llm, output) for output in outputs]
    hits = sum(output.num_cached_tokens or 0 for output in second)
    record_property("tokens that the prefix cache gave", hits)
    assert (hits > 0) == options.get("enable_prefix_caching", True)
    for (prompt, ask), report in zip(told, reports, strict=True):
        assert report["mean_strength"] == pytest.approx(reference.applied(prompt, ask), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"enforce_eager": True, "max_num_batched_tokens": 32},
        {"enforce_eager": False, "max_num_batched_tokens": 32},
        {"enforce_eager": False, "tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
    ],
    ids=["eager-chunked", "compiled-chunked", "tensor-compiled"],
)
def test_every_method_and_place_and_role_agrees_and_is_told(
    root: Path, reference: Reference, record_property: Any, options: dict[str, Any]
) -> None:
    from dsas.serving import engine

    work = [(prompt, ask) for ask in METHODS for prompt in PROMPTS]
    with running(root, names=("plane", "place", "role", "cast"), reports=True, **options) as llm:
        check(llm, reference, record_property, work)
        told = [(prompt, ask) for prompt, ask in work if ask.names and prompt not in PROMPTS[:2]]  # fits in no block
        outputs = generate(llm, told, report=True)
        reports = [engine.report(llm, output) for output in outputs]
    for (prompt, ask), report in zip(told, reports, strict=True):
        assert report["mean_strength"] == pytest.approx(reference.applied(prompt, ask), abs=1e-5)
    plain, of_roles = (reference.generate(PROMPTS[0], ask).log_probabilities for ask in (METHODS[0], METHODS[3]))
    assert (plain - of_roles).abs().max() > 0.01  # the letters are there: roles are steered


@MODES
@CACHES
def test_evidence_of_requests_that_are_preempted_begins_again_or_goes_on(
    root: Path, reference: Reference, record_property: Any, *, cached: bool, eager: bool
) -> None:
    little = {"num_gpu_blocks_override": 9, "enable_prefix_caching": cached, "max_num_seqs": 8}
    with running(root, names=EVERYONE, enforce_eager=eager, **little) as llm:
        work = [(LONG[:60], ask) for ask in TONES for _ in range(2)]
        outputs = generate(llm, work, new_tokens=40)
        wanted = [reference.generate(prompt, ask, 40) for prompt, ask in work]
        worst = max(worst_difference(*pair) for pair in zip(outputs, wanted, strict=True))
        counted = {metric.name: metric for metric in llm.get_metrics()}["vllm:num_preemptions"].value
    record_property("worst log-probability difference", worst)
    record_property("preemptions", counted)
    assert worst < TOLERANCE
    assert counted > 0


@pytest.mark.parametrize(
    "options",
    [
        {"num_gpu_blocks_override": 9, "max_num_seqs": 8, "enforce_eager": True},
        {"num_gpu_blocks_override": 9, "max_num_seqs": 8, "enforce_eager": True, "enable_prefix_caching": False},
        {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "enforce_eager": False},
    ],
    ids=["preempted", "preempted-no-prefix-cache", "tensor-compiled"],
)
def test_verdicts_fall_where_an_offline_replay_has_them_though_requests_make_room(
    root: Path, reference: Reference, record_property: Any, options: dict[str, Any]
) -> None:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    prompt, ask, new, window = LONG[:60], Ask(("detox",), (0.2,)), 40, 2
    read = len(reference.tokenizer(prompt)["input_ids"])
    values = reference.values(prompt, ask, new)[read:]
    means = [None, *((a + b) / 2 for a, b in pairwise(values))]
    judged, wanted = [], []
    for threshold in sorted(mean for mean in means if mean is not None)[::5]:
        first = next((n for n, mean in enumerate(means) if mean is not None and mean > threshold), None)
        plain = reference.generate(prompt, ask, new).tokens
        judged.append({"dsas_stop_above": threshold})
        wanted.append(plain if first is None else plain[: first + 1])
        judged.append({"dsas_raise_above": threshold, "dsas_raise_to": 1.5})
        wanted.append(plain if first is None else reference.raised(prompt, ask, first + 1, 1.5, new))
    given = {"temperature": 0, "max_tokens": new, "ignore_eos": True}
    parameters = [
        SamplingParams(**given, extra_args={**(ask.extra_args() or {}), **one, "dsas_stop_window": window})
        for one in judged
    ]
    with running(root, reports=True, **options) as llm:
        outputs = llm.generate([prompt] * len(judged), parameters, use_tqdm=False)
        counted = {metric.name: metric for metric in llm.get_metrics()}["vllm:num_preemptions"].value
    record_property("requests", len(judged))
    record_property("preemptions", counted)
    assert [list(output.outputs[0].token_ids) for output in outputs] == wanted
    stopped = [output.outputs[0].stop_reason == "dsas_stop_above" for output in outputs]
    assert stopped == ["dsas_stop_above" in one and len(own) < new for one, own in zip(judged, wanted, strict=True)]
    assert len({tuple(own) for own in wanted}) >= 4
    assert ("num_gpu_blocks_override" in options) == (counted > 0)


# Without compilation vLLM's CPU worker runs no pipeline, steered or not.
def test_two_workers_that_are_a_pipeline_agree(root: Path, reference: Reference, record_property: Any) -> None:
    pipeline = {"distributed_executor_backend": "mp", "pipeline_parallel_size": 2}
    with running(root, enforce_eager=False, **pipeline) as llm:
        check(llm, reference, record_property)


@pytest.mark.parametrize(
    "options",
    [{}, {"enforce_eager": False}, {"enforce_eager": False, "tensor": 2}, {"enforce_eager": False, "pipeline": 2}],
    ids=["eager", "compiled", "tensor-compiled", "pipeline-compiled"],
)
def test_requests_that_ask_are_told_how_strongly_they_were_steered_and_get_the_same_beside_others(
    root: Path, reference: Reference, record_property: Any, options: dict[str, Any]
) -> None:
    from dsas.serving import engine

    parallel = {f"{kind}_parallel_size": options[kind] for kind in ("tensor", "pipeline") if kind in options}
    executor = {"distributed_executor_backend": "mp"} if parallel else {}
    given = {"enforce_eager": options.get("enforce_eager", True), "max_num_batched_tokens": 32, **parallel, **executor}
    with running(root, reports=True, enable_prefix_caching=False, **given) as llm:
        check(llm, reference, record_property)
        outputs = generate(llm, WORK, report=True)
        reports = [engine.report(llm, output) for output in outputs]
    worst = 0.0
    for (prompt, ask), output, report in zip(WORK, outputs, reports, strict=True):
        assert worst_difference(output, reference.generate(prompt, ask)) < TOLERANCE
        assert report["tokens"] == len(output.prompt_token_ids) + NEW_TOKENS - 1
        wanted = reference.applied(prompt, ask)
        assert report["mean_strength"].keys() == wanted.keys()
        worst = max([worst, *(abs(report["mean_strength"][name] - mean) for name, mean in wanted.items())])
    record_property("worst difference of mean strengths", worst)
    assert worst < 1e-5


@MODES
def test_without_steering_and_at_strength_zero_no_bit_differs_from_the_stock_engine(root: Path, *, eager: bool) -> None:
    work = [(prompt, ask) for prompt in PROMPTS for ask in (Ask(), Ask(("detox",), (0.0,)))]

    def answers(*, steered: bool) -> list[Any]:
        with running(root, names=NAMES if steered else (), enforce_eager=eager) as llm:
            outputs = generate(llm, work if steered else [(prompt, Ask()) for prompt, _ in work])
        ranked = [[sorted((t, v.logprob) for t, v in at.items()) for at in o.outputs[0].logprobs] for o in outputs]
        return [(list(output.outputs[0].token_ids), values) for output, values in zip(outputs, ranked, strict=True)]

    assert answers(steered=True) == answers(steered=False)


def test_ten_thousand_mixed_requests_each_get_their_own_strength(root: Path, reference: Reference) -> None:
    chance = random.Random(0)
    strengths = (0.0, 0.25, 0.5, 1.0, 1.5)
    asks = [Ask(), *(Ask((name,), (strength,)) for name in ("detox", "topic", "line") for strength in strengths)]
    asks += [Ask(("topic", "detox"), (a, b)) for a in (0.25, 1.0) for b in (0.25, 1.0)]
    work = [(chance.choice(PROMPTS[2:]), chance.choice(asks)) for _ in range(10_000)]
    with running(root, max_num_seqs=64) as llm:
        outputs = generate(llm, work, new_tokens=3, logprobs=2)
    wanted = [reference.generate(prompt, ask, 3) for prompt, ask in work]
    assert max(worst_difference(*pair) for pair in zip(outputs, wanted, strict=True)) < TOLERANCE
    different = {tuple(reference.generate(PROMPTS[2], ask, 3).log_probabilities[:, 0].tolist()) for ask in asks}
    assert len(different) == len(asks) - 3  # the three of strength 0 are the unsteered one: all others tell each other


def test_several_samples_of_one_request_are_all_steered(root: Path, reference: Reference) -> None:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    ask = ASKS[2]
    with running(root) as llm:
        parameters = SamplingParams(n=3, top_k=1, max_tokens=NEW_TOKENS, ignore_eos=True, extra_args=ask.extra_args())
        (output,) = llm.generate([PROMPTS[2]], parameters, use_tqdm=False)
    assert [list(one.token_ids) for one in output.outputs] == 3 * [reference.generate(PROMPTS[2], ask).tokens]


@pytest.fixture(scope="module")
def spared(root: Path) -> Iterator[Any]:
    with running(root, spare=2) as llm:
        yield llm


def test_a_bad_request_is_refused_and_the_engine_lives_on(spared: Any, reference: Reference) -> None:
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]

    with pytest.raises(VLLMValidationError, match="no Steering 'detoks' is loaded; closest: 'detox'"):
        generate(spared, [("Hi", Ask(("detoks",), (1.0,)))])
    with pytest.raises(VLLMValidationError, match="must be a number from -1e"):
        generate(spared, [("Hi", Ask(("detox",), (-1e7,)))])
    (output,) = generate(spared, [("Hi", ASKS[1])])
    assert worst_difference(output, reference.generate("Hi", ASKS[1])) < TOLERANCE


def test_a_steering_is_loaded_and_replaced_while_the_engine_runs(
    spared: Any, root: Path, reference: Reference, tmp_path: Path
) -> None:
    from dsas.serving import engine

    for version in ("later", "latest", "later", "latest"):  # the slot of the version before is given back each time
        engine.load(spared, "extra", str(root / version))
        (output,) = generate(spared, [(PROMPTS[0], Ask(("extra",), (1.0,)))])
        wanted = reference.generate(PROMPTS[0], Ask((version,), (1.0,)))
        assert worst_difference(output, wanted) < TOLERANCE
    random_steering(tiny_model("llama", head_dim=32), "layers.0", seed=9).save_pretrained(tmp_path / "more")
    engine.load(spared, "second", str(root / "later"))
    with pytest.raises(OptionError, match="no slot is free for 'third'"):
        engine.load(spared, "third", str(tmp_path / "more"))


def test_what_does_not_fit_is_not_loaded(spared: Any, tmp_path: Path) -> None:
    from dsas.serving import engine

    random_steering(tiny_model("qwen2")).save_pretrained(tmp_path / "qwen")
    with pytest.raises(ModelMismatchError, match="class 'Qwen2ForCausalLM' here, 'LlamaForCausalLM' served"):
        engine.load(spared, "qwen", str(tmp_path / "qwen"))


def test_another_model_is_refused_before_it_is_loaded(root: Path, tmp_path: Path) -> None:
    from dsas.serving import engine

    tiny_model("qwen2").save_pretrained(tmp_path)  # pyright: ignore[reportAttributeAccessIssue]
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelMismatchError, match="fitted on another kind of model"):
        engine.arguments(str(tmp_path), [str(root / "detox")])
