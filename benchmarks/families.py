"""Claim: dsas steers every causal family of transformers that can be built tiny as a plain hook does.

Builds a random model of a few layers of every family in transformers' table of causal language models, in float64, and
prints a line for each: how many sites each shorthand names, and whether these hold.

| column | what is checked |
|---|---|
| fit | the vectors of a fit are the differences of means that a plain hook reads, text by text |
| apply | logits are those of a hook that adds strength * regulator(t) * vector, left-padded rows each at its strength |
| generate | greedy continuations of left-padded rows, each at its strength, are those under the same hooks |
| explain | a text and a continued prompt are explained, one value per token |

    python benchmarks/families.py [--only llama gpt2 ...] \
        [--out docs/reference/families.md [--data src/dsas/model/families.json]]
"""

import argparse
import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dsas
from dsas.errors import DsasError
from dsas.model.identity import ModelIdentity
from dsas.model.layers import SHORTHANDS
from dsas.testing import tiny_tokenizer

# Names that configs have for the same sizes; those that a config does not have are left out.
SIZES: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 32, "d_model": 32, "n_embd": 32, "intermediate_size": 64, "ffn_dim": 64,
    "d_ff": 64, "n_inner": 64, "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "n_positions": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "decoder_layers": 4,
    "encoder_layers": 4, "decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64, "expert_intermediate_size": 16,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "initializer_range": 0.2, "init_std": 0.2, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "hidden_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
# What a family needs beyond: its own names, or sizes that go together. None takes a size out.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "bert": {"is_decoder": True}, "bert-generation": {"is_decoder": True}, "big_bird": {"is_decoder": True},
    "camembert": {"is_decoder": True}, "data2vec-text": {"is_decoder": True}, "electra": {"is_decoder": True},
    "ernie": {"is_decoder": True}, "megatron-bert": {"is_decoder": True}, "rembert": {"is_decoder": True},
    "roberta": {"is_decoder": True}, "roberta-prelayernorm": {"is_decoder": True}, "roc_bert": {"is_decoder": True},
    "roformer": {"is_decoder": True}, "xlm-roberta": {"is_decoder": True}, "xlm-roberta-xl": {"is_decoder": True},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "dots1": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
    **{name: {"num_key_value_heads": 4} for name in (
        "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash",
        "minicpm3", "youtu",
    )},
    "codegen": {"rotary_dim": 8}, "gptj": {"rotary_dim": 8},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2, "num_key_value_heads": 4},
    "falcon": {"head_dim": None},
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 257, "num_kv_shared_layers": 0},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2, "num_key_value_heads": 4},
    "xlstm": {"v_head_dim": None},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_n_groups": 1, "mamba_d_state": 16},
    "gemma3n_text": {
        "vocab_size_per_layer_input": 257, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
        "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "granitemoehybrid": {
        "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "layer_types": ["mamba", "attention"] * 2,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "lfm2": {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 16},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 16},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32},
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "local"], "axial_pos_embds": False, "local_attn_chunk_length": 16,
    },
    "xlm": {"pad_token_id": None}, "xlnet": {"max_position_embeddings": None},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
}  # fmt: skip
TEXTS: dict[str, Any] = {
    "source": ["a bad day", "bad, bad", "so bad it is", "this was bad!"],
    "control": ["some words", "a door is here", "it rains", "two and two"],
    "target": ["a good day", "good, good", "so good it is", "this was good!"],
}
PROMPTS = ("a dog", "the door is shut", "x")
STRENGTHS = (0.0, 0.4, 1.3)
TOLERANCE = 1e-5  # of the largest logit: some families compute parts in float32
LARGEST = 30_000_000


class Row(NamedTuple):
    """What was found of a family: sites per shorthand, the one that the checks used, and what failed, by check."""

    family: str
    sites: dict[str, int]
    used: str | None
    failed: dict[str, str]
    dtype: str


def build(family: str) -> Any:
    """Return a tiny random model of a family, in float64, or in float32 where that does not run in float64."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    plain = kind()
    known = {name: value for name, value in SIZES.items() if _has(plain, name)}
    given = {name: value for name, value in {**known, **OWN.get(family, {})}.items() if value is not None}
    config = kind(**given)
    config._experts_implementation = "eager"  # the grouped kernels have no float64
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} M parameters at the sizes asked for")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # some families begin at zero, where nothing would show
            if not parameter.any():
                parameter.normal_(std=0.1)
    model = model.double().eval()
    if family == "xlnet":  # whose generate makes inputs in float32
        return model.float()
    with contextlib.suppress(RuntimeError), torch.no_grad():
        if not model(**_padded(tiny_tokenizer())).logits.isnan().any():
            return model
    return model.float()  # which has parts that know no float64, or gives no numbers for padding in it


def _has(config: Any, name: str) -> bool:
    try:
        getattr(config, name)
    except Exception:
        return False
    return True


def check(family: str, model: Any) -> Row:
    """Return what holds of one model."""
    sites, failed, dtype = {}, {}, str(model.dtype).removeprefix("torch.")
    for shorthand in SHORTHANDS:
        try:
            sites[shorthand] = len(dsas.find_sites(model, shorthand))
        except DsasError:
            sites[shorthand] = 0
    tokenizer = tiny_tokenizer()
    used = next((name for name in ("residual", "mlp", "attention") if _reads(model, tokenizer, name)), None)
    if used is None:
        return Row(family, sites, None, {"fit": "no shorthand gives (batch, token, dim)"}, dtype)
    checks = {"fit": _fits, "apply": _applies, "generate": _generates, "explain": _explains}
    for name, one in checks.items():
        try:
            said = one(model, tokenizer, used)
        except Exception as error:
            said = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        if said:
            failed[name] = said
    return Row(family, sites, used, failed, dtype)


def _reads(model: Any, tokenizer: Any, shorthand: str) -> bool:
    with contextlib.suppress(DsasError, RuntimeError):
        return bool(_fit(model, tokenizer, shorthand).rules)
    return False


def _fit(model: Any, tokenizer: Any, sites: Any) -> dsas.Steering:
    reading = dsas.Reading(skip_sinks=False, batch_size=1)
    return dsas.fit(model, tokenizer, **TEXTS, sites=sites, selection="all", reading=reading, progress=False)


def _rules(model: Any, sites: Any) -> list[tuple[dsas.Site, Tensor, Tensor, float]]:
    """Return sites with a vector, and a regulator's direction and bias."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for site in dsas.find_sites(model, sites):
        width = _width(model, site)
        vector, theta = (torch.randn(width, generator=generator) for _ in range(2))
        found.append((site, vector, 0.3 * theta, 0.1))
    return found


def _width(model: Any, site: dsas.Site) -> int:
    seen: list[int] = []
    handle = model.get_submodule(site.path).register_forward_hook(
        lambda _m, _a, out: seen.append(_first(out).shape[-1])
    )
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    handle.remove()
    return seen[0]


TIME_FIRST = ("XLNetLayer",)  # what gives (token, batch, dim)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@contextlib.contextmanager
def plain_hooks(
    model: Any, rules: Sequence[tuple[dsas.Site, Tensor, Tensor, float]], strengths: Tensor
) -> Iterator[None]:
    """Steer by hooks that have nothing of dsas: t + strength of the row * sigmoid(theta t + bias) * vector."""

    def steer(module: nn.Module, _args: Any, output: Any, rule: Any) -> Any:
        _, vector, theta, bias = rule
        t = _first(output)
        rows = (1, -1, 1) if type(module).__name__ in TIME_FIRST else (-1, 1, 1)
        moved = t + strengths.to(t).view(rows) * torch.sigmoid(t @ theta.to(t) + bias).unsqueeze(-1) * vector.to(t)
        if isinstance(output, Tensor):
            return moved
        items = [moved, *output[1:]]
        if hasattr(output, "_fields"):
            return type(output)(*items)
        return items if isinstance(output, list) else tuple(items)

    handles = []
    for rule in rules:

        def hook(module: nn.Module, args: Any, output: Any, rule: Any = rule) -> Any:
            return steer(module, args, output, rule)

        handles.append(model.get_submodule(rule[0].path).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _steering(model: Any, rules: Sequence[tuple[dsas.Site, Tensor, Tensor, float]]) -> dsas.Steering:
    made = [
        dsas.Rule(site, dsas.Addition(vector), dsas.Logistic(theta, torch.tensor(bias)))
        for site, vector, theta, bias in rules
    ]
    return dsas.Steering(made, ModelIdentity.of(model))


def _padded(tokenizer: Any) -> dict[str, Tensor]:
    rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _fits(model: Any, tokenizer: Any, used: str) -> str:
    rules = _fit(model, tokenizer, used).rules
    read = {name: [_read(model, tokenizer, text, rules) for text in TEXTS[name]] for name in ("source", "target")}
    for number, rule in enumerate(rules):
        source, target = (torch.stack([row[number] for row in read[name]]).mean(0) for name in read)
        expected = target - source
        gap = float(
            (rule.transform.get_buffer("vector").double() - expected).abs().max() / expected.abs().max().clamp(min=1e-9)
        )
        if not gap < 1e-3:
            return f"{rule.site.path} differs by {gap:.1e} of its vector"
    return ""


def _read(model: Any, tokenizer: Any, text: str, rules: Sequence[dsas.Rule]) -> list[Tensor]:
    """Return the mean over a text's tokens of what each site gives first, by plain hooks."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    seen: dict[str, Tensor] = {}

    def look(path: str, output: Any, kind: str) -> None:  # the last tokens: some models put their own before the text
        row = _first(output)[:, 0] if kind in TIME_FIRST else _first(output)[0]
        seen.setdefault(path, row[-ids.shape[1] :].double().mean(0))

    handles = [
        model.get_submodule(rule.site.path).register_forward_hook(
            lambda module, _args, output, path=rule.site.path: look(path, output, type(module).__name__)
        )
        for rule in rules
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return [seen[rule.site.path] for rule in rules]


def _applies(model: Any, tokenizer: Any, used: str) -> str:
    rules, inputs = _rules(model, used), _padded(tokenizer)
    for given, strengths in (
        ({"input_ids": inputs["input_ids"][1:2]}, torch.tensor([0.7])),
        (inputs, torch.tensor(STRENGTHS)),
    ):
        with torch.no_grad(), plain_hooks(model, rules, strengths):
            expected = model(**given).logits
        with torch.no_grad(), _steering(model, rules).apply(model, strengths if len(strengths) > 1 else 0.7) as applied:
            got = model(**given).logits
        with torch.no_grad():
            plain = model(**given).logits
        real = given.get("attention_mask", torch.ones(1)).bool()
        got, expected, plain = ((out if len(real) == 1 else out[real]) for out in (got, expected, plain))
        gap, moved = float((got - expected).abs().max()), float((plain - expected).abs().max())
        tolerance = TOLERANCE if model.dtype == torch.float64 else 100 * TOLERANCE
        if not gap < tolerance * max(1.0, float(expected.abs().max())):
            return f"logits differ by {gap:.1e}"
        if not moved > 1e-3:
            return "steering changed nothing"
        if [line.status for line in applied.report() if line.mean_strength is None]:
            return "a site was not recorded"
    return ""


def _generates(model: Any, tokenizer: Any, used: str) -> str:
    rules, inputs = _rules(model, used), _padded(tokenizer)
    strengths, options = (
        torch.tensor(STRENGTHS),
        {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0},
    )
    with plain_hooks(model, rules, strengths):
        expected = model.generate(**inputs, **options)
    with _steering(model, rules).apply(model, strengths):
        got = model.generate(**inputs, **options)
    return "" if torch.equal(got, expected) else "other tokens"


def _explains(model: Any, tokenizer: Any, used: str) -> str:
    steering = _steering(model, _rules(model, used))
    read = dsas.explain(model, tokenizer, steering, PROMPTS[1], strength=0.5, next_tokens=1)
    said = dsas.explain(model, tokenizer, steering, prompt=PROMPTS[1], generate=3, strength=0.5)
    if "".join(read.tokens[0][-len(PROMPTS[1]) :]) != PROMPTS[1] or bool(read.strengths.isnan().any()):
        return f"tokens {read.tokens[0]}"
    return "" if said.real.shape[1] > len(PROMPTS[1]) else "nothing was continued"


def line(row: Row) -> str:
    counts = " | ".join(str(row.sites.get(name, 0) or "-") for name in SHORTHANDS)
    passed = "yes" if row.used else "-"
    marks = " | ".join(row.failed.get(name, passed) for name in ("fit", "apply", "generate", "explain"))
    return f"| {row.family} | {counts} | {row.used or '-'} | {row.dtype} | {marks} |"


def main() -> None:
    from transformers import logging
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, help="the same for `dsas doctor`")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    lines, unbuilt = [], []
    for family in arguments.only or sorted(NAMES):
        try:
            model = build(family)
        except Exception as error:
            unbuilt.append(f"{family} ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
            print("not built:", unbuilt[-1], flush=True)
            continue
        lines.append(line(check(family, model)))
        print(lines[-1], flush=True)
    if arguments.out is not None:
        arguments.out.write_text("\n".join([*head(lines), *lines, "", f"Not built: {'; '.join(unbuilt)}."]) + "\n")
    if arguments.data is not None and arguments.out is not None:
        arguments.data.write_text(as_data(arguments.out.read_text()))


def as_data(page: str) -> str:
    """Return the table of the page as JSON, a line a family."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in page.splitlines() if row[:1] == "|"]
    told = {"transformers": page.split("transformers ")[1].split(" ")[0], "columns": cells[0][1:]}
    rows = ",\n".join(f"{json.dumps(row[0])}: {json.dumps(row[1:])}" for row in cells[2:])
    return f'{json.dumps(told)[:-1]}, "families": {{\n{rows}\n}}}}\n'


def head(lines: Sequence[str]) -> list[str]:
    """Return what stands above the table."""
    import transformers

    good = sum(one.endswith("| yes | yes | yes | yes |") for one in lines)
    names = [*SHORTHANDS, "steered at", "in", "fit", "apply", "generate", "explain"]
    return [
        "# Families",
        "",
        f"Every causal family of transformers {transformers.__version__} that could be built tiny, as",
        "`python benchmarks/families.py --out docs/reference/families.md` found it: the sites that each shorthand",
        "names in a model of four layers, and whether dsas does what plain hooks do (see there for what is checked). "
        f"{good} of {len(lines)} hold in all.",
        "",
        f"| family | {' | '.join(names)} |",
        "|" + "---|" * (len(names) + 1),
    ]


if __name__ == "__main__":
    main()
