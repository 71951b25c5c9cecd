"""Claim: a Steering fitted on a model in float32 keeps its effect on relatives, and `dsas port` says so beforehand.

CAA on the demo's texts with the default regulator, fitted on SmolLM2-135M-Instruct in float32, at the strength where
tuning texts (Wikipedia, web, news, prompt style) lose the stated damage there, in nats per token. The same Steering at
the same strength is then applied to relatives of that model:

- bfloat16
- LoRA: rank 8 at the query, value and MLP layers, trained for 40 steps of 8 web sentences that nothing else reads
- int8: torchao's Int8WeightOnlyConfig; needs `pip install torchao`
- NF4: bitsandbytes, 4 bits, blocks of 64; needs `pip install bitsandbytes`

For each: what `port` says; the AUROC of the regulators, mean over sites, on single tokens of held-out toxic prompts
against clean ones of the same kind; the toxic share of continuations of the demo's report prompts, by the mean of four
scorers, unsteered and steered; and the perplexity of the report's ordinary texts, steered over unsteered (exp of the
mean loss per token, mean over the kinds). 95 % intervals over prompts or texts. If interrupted, it resumes.

    python benchmarks/relatives.py [--only NAME ...] [--damage 0.02] [--prompts 303] [--seeds 2] [--read 100]
        [--out out/relatives]
"""

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Bench, Cell
from equal_damage import strength_at

import dsas
from dsas.demo.data import openwebtext_sentences, split
from dsas.demo.models import real_model
from dsas.demo.texts import DemoTexts, Sizes, bare_setup, demo_texts
from dsas.evaluation.firing import fires_on
from dsas.evaluation.generations import Sampling
from dsas.evaluation.intervals import Interval, bootstrap_groups
from dsas.evaluation.loss_curve import Yardstick
from dsas.evaluation.perplexity import perplexity
from dsas.evaluation.scorers import CharacterGrams, packaged_scorers
from dsas.files.results import Results
from dsas.model.loading import LoadedModel, load_model

STEPS, PER_STEP, RATE = 40, 8, 1e-3


def in_bfloat16(name: str, folder: Path) -> Any:
    return load_model(name, precision="bfloat16").model


def adapted(name: str, folder: Path) -> Any:
    """Return the model under an adapter, which is trained the first time; prints the losses at its ends."""
    from peft import LoraConfig, PeftModel, get_peft_model

    loaded, kept = load_model(name, precision="float32"), folder / "adapter"
    if (kept / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(loaded.model, str(kept)).eval()
    both = Sizes().tune_sentences, Sizes().report_sentences  # which the demo takes from the same sentences
    texts = split(openwebtext_sentences(), (*both, STEPS * PER_STEP))[2]
    torch.manual_seed(0)
    layers = ["q_proj", "v_proj", "up_proj", "down_proj"]
    model = get_peft_model(loaded.model, LoraConfig(r=8, lora_alpha=16, target_modules=layers, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=RATE)
    losses = []
    for step in range(STEPS):
        given = loaded.tokenizer(
            texts[step * PER_STEP : (step + 1) * PER_STEP],
            return_tensors="pt", padding=True, truncation=True, max_length=50,
        )  # fmt: skip
        labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
        loss = model(**given, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"LoRA: loss {np.mean(losses[:5]):.3f} -> {np.mean(losses[-5:]):.3f} over {STEPS} steps", flush=True)
    model.save_pretrained(str(kept))
    return model.eval()


def in_int8(name: str, folder: Path) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = load_model(name, precision="float32").model
    quantize_(model, Int8WeightOnlyConfig())
    return model


def in_nf4(name: str, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    options = {"dtype": torch.float32, "device_map": "cpu", "quantization_config": config}
    return AutoModelForCausalLM.from_pretrained(name, **options).eval()


RELATIVES: dict[str, Callable[[str, Path], Any]] = {
    "float32, itself": lambda name, folder: load_model(name, precision="float32").model,
    "bfloat16": in_bfloat16,
    "NF4": in_nf4,
    "LoRA": adapted,
    "int8": in_int8,
}


def ported(steering: dsas.Steering, relative: LoadedModel, texts: DemoTexts) -> dict[str, Any]:
    """Return what `port` says, and the AUROC of single tokens over all steered sites."""
    source, control = texts.held_out_source, texts.report["prompt style"]
    said = steering.port(*relative, source=source, control=control)
    aurocs = [site.auroc for site in said.sites if site.auroc is not None]
    fires = fires_on(*relative, steering, {"source": source, "control": control}, progress=False).kinds
    assert fires[1].auroc is not None
    return {
        "verdict": said.verdict,
        "hold": f"{len(said.sites) - len(said.refit())} of {len(said.sites)}",
        "aurocs": [min(aurocs), float(np.median(aurocs)), max(aurocs)],
        "differs": list(said.differences),
        "token": list(fires[1].auroc),
        "read": [len(source), len(control)],
    }


def surprise(relative: LoadedModel, texts: DemoTexts) -> dict[str, list[list[float]]]:
    """Return the losses and numbers of tokens of the report's ordinary texts, by kind, as the model now is."""
    found = {kind: perplexity(*relative, members) for kind, members in texts.report.items()}
    return {kind: [one.losses.tolist(), one.tokens.tolist()] for kind, one in found.items()}


def perplexity_ratio(steered: dict[str, Any], unsteered: dict[str, Any]) -> Interval:
    """Return exp of what all tokens of a kind lose together, mean over the kinds, with its interval over texts."""
    lost = [np.subtract(steered[kind][0], unsteered[kind][0]) for kind in unsteered]
    tokens = [np.array(unsteered[kind][1], dtype=float) for kind in unsteered]

    def statistic(draws: Sequence[np.ndarray]) -> np.ndarray:
        kinds = [drawn @ (one * many) / (drawn @ many) for drawn, one, many in zip(draws, lost, tokens, strict=True)]
        return np.exp(kinds).mean(axis=0)

    return bootstrap_groups(statistic, [len(one) for one in lost])


def shown(name: str, said: dict[str, Any], cells: Sequence[Cell], ratio: Interval) -> str:
    """Return a row as a line of Markdown."""
    toxic = [cell.toxic()["ensemble"] for cell in cells]
    low, middle, high = said["aurocs"]
    token = Interval(*said["token"])
    row = [
        name,
        f"{said['verdict']} ({said['hold']} sites; {middle:.2f}, {low:.2f} to {high:.2f})",
        f"{token.mean:.3f} [{token.low:.3f}, {token.high:.3f}]",
        *(f"{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in toxic),
        f"{ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
    ]
    return f"| {' | '.join(row)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(RELATIVES), choices=list(RELATIVES))
    parser.add_argument("--damage", type=float, default=0.02)
    parser.add_argument("--prompts", type=int, default=303)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--read", type=int, default=100, help="texts of each kind")
    parser.add_argument("--out", type=Path, default=Path("out/relatives"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    name, kept = str(real_model("smollm2")), Results(arguments.out / "measured")
    loaded = load_model(name, precision="float32")
    texts = demo_texts(arguments.out, bare_setup(name, loaded), progress=False)
    texts = texts._replace(
        prompts=texts.prompts[: arguments.prompts],
        report={kind: members[: arguments.read] for kind, members in texts.report.items()},
        held_out_source=texts.held_out_source[: arguments.read],
    )
    sets = {"source": texts.source, "control": texts.control, "target": texts.target}
    steering = dsas.fit(*loaded, **sets, checkpoint=arguments.out / "collected", progress=False)
    tune = Yardstick(*loaded, source=texts.source[:8], control=texts.tune)  # its source is not looked at
    strength = strength_at(arguments.damage, steering, tune, loaded, kept)
    steered_sites = sum(rule.weight > 0 for rule in steering.rules)
    print(f"fitted on {len(texts.source)} texts per set; {steered_sites} sites; strength {strength:.4g}; "
          f"n = {len(texts.prompts)} prompts x {arguments.seeds} seeds; texts read: "
          f"{ {kind: len(members) for kind, members in texts.report.items()} }", flush=True)  # fmt: skip
    print("| relative | port: verdict (sites that hold; AUROC of texts, median, range over sites) | AUROC of tokens |"
          " toxic unsteered, % | toxic steered, % | perplexity ratio |", flush=True)  # fmt: skip
    print("|---|---|---|---|---|---|")
    for relative in arguments.only:
        model = LoadedModel(RELATIVES[relative](name, arguments.out), loaded.tokenizer)
        depends = [relative, steering.digest(), texts.held_out_source, texts.report]
        said = kept.remember("ported", depends, lambda m=model: ported(steering, m, texts))
        bench = Bench(
            *model,
            prompts=texts.prompts,
            neutral={},
            scorers=[*packaged_scorers(), CharacterGrams()],
            seeds=list(range(arguments.seeds)),
            sampling=Sampling(),
            folder=arguments.out / "cells",
        )
        cells, losses = [], []
        for condition, amount in {"unsteered": 0.0, "steered": strength}.items():
            steered = nullcontext() if amount == 0 else steering.apply(model.model, amount, record=False)
            identity = f"{relative} {steering.digest() if amount else ''}"
            cells.append(bench.cell(condition, amount, identity, steered=steered, progress=lambda _: None))
            steered = nullcontext() if amount == 0 else steering.apply(model.model, amount, record=False)
            with steered:
                losses.append(
                    kept.remember("losses", [identity, amount, texts.report], lambda m=model: surprise(m, texts))
                )
        print(shown(relative, said, cells, perplexity_ratio(losses[1], losses[0])), flush=True)
        own = [math.exp(np.mean([np.dot(*one) / np.sum(one[1]) for one in found.values()])) for found in losses]
        print(f"    perplexity {own[0]:.2f} unsteered, {own[1]:.2f} steered; differs: {said['differs']}", flush=True)


if __name__ == "__main__":
    main()
