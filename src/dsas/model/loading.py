"""Loading: a language model and its tokenizer from a local folder, a hub id or a GGUF file; a pipeline.

A model that continues texts is loaded as such, one with an encoder with both sides, and one of texts with pictures or
sounds whole, with its processor, which then stands for the tokenizer; so is one that writes down speech (Whisper).

`precision="auto"` keeps the dtype of the checkpoint if the processor is fast in it, and otherwise takes float32, which
holds every value of the checkpoint. A GPU always keeps it; a CPU keeps bfloat16 and float16 only if /proc/cpuinfo lists
instructions for them. Tokens per second of processor time on one core, SmolLM2-135M, float32 = 1
(`benchmarks/precision.py`):

| CPU | bfloat16, generating | reading | float16, generating | reading |
|---|---|---|---|---|
| AMD EPYC with avx512_bf16, without avx512_fp16 | 2.8 | 3.1 | 0.3 | 0.3 |
| AVX2 only | 0.5 | 0.25 | | |

Limitations: on systems without /proc/cpuinfo a CPU counts as one without such instructions.
"""

import json
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from dsas.errors import DsasWarning, MissingExtraError, OptionError
from dsas.files.json_values import JsonObject
from dsas.model.foreign import Foreign

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STORED = {"F16": torch.float16, "BF16": torch.bfloat16}  # by the names of safetensors
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
SPREADS = ("balanced", "sequential")  # values of transformers' `device_map` that `device` accepts here, too
CPU_INFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {  # Linux's names of the instructions that make products in a precision fast
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16", "svebf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "fphp", "asimdhp"},
}


class LoadedModel(NamedTuple):
    """A model in evaluation mode and its tokenizer, or the processor of a multimodal model."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def load_model(name: str, *, device: str = "auto", precision: str = "auto") -> LoadedModel:
    """Load a language model by folder, hub id, or path of a .gguf file, in evaluation mode.

    device: "auto" takes a GPU when there is one, else anything torch.device takes; or one of `SPREADS`, which spreads
    the layers over all GPUs, and the rest over main memory and disk (needs accelerate).
    precision: one of `PRECISIONS`; "auto" is the dtype of the checkpoint, or float32 on a CPU that is slow in it.
    Raises OptionError when nothing can be loaded from `name` or the device does not exist, MissingExtraError for a GGUF
    file or a spread without the packages they need.
    """
    place = _checked(device, precision)
    path = Path(name)
    source, gguf = (str(path.parent), path.name) if path.suffix == ".gguf" else (name, None)
    options: JsonObject = _gguf_options(gguf) if gguf else {}
    dtype = precision if precision == "auto" else getattr(torch, precision)
    if device in SPREADS:
        _need("accelerate", "accelerate")
        options["device_map"] = device
    try:
        tokenizer, kind = _reader(source, gguf)
        model = kind.from_pretrained(source, dtype=dtype, **options)
    except DsasWarning:  # where warnings are made errors
        raise
    except Exception as error:  # of many kinds, from several libraries, such as that of a file that was cut off
        wanted = "a folder with a transformers model, a hub id or a .gguf file"
        raise OptionError(f"no model could be loaded from {name!r} (expected {wanted}): {error}") from error
    if device not in SPREADS:
        torch.nn.Module.to(model, place)
    if precision == "auto" and place.type == "cpu" and not fast_on_this_cpu(model.dtype):
        torch.nn.Module.to(model, torch.float32)
    return LoadedModel(model.eval(), tokenizer)


def _reader(source: str, gguf: str | None) -> tuple[Foreign, Foreign]:
    """Return the tokenizer, or the processor of a multimodal model, and the class that loads the model."""
    import transformers  # `import dsas` must not load it

    auto: Foreign = transformers
    if gguf is not None:
        return auto.AutoTokenizer.from_pretrained(source, gguf_file=gguf), auto.AutoModelForCausalLM
    config = auto.AutoConfig.from_pretrained(source)
    hears = config.is_encoder_decoder and type(config) in auto.AutoModelForSpeechSeq2Seq._model_mapping
    sees = hears or type(config) in auto.AutoModelForMultimodalLM._model_mapping
    both = config.is_encoder_decoder and type(config) in auto.AutoModelForSeq2SeqLM._model_mapping
    if not sees or both:
        kind = auto.AutoModelForSeq2SeqLM if both else auto.AutoModelForCausalLM
        return auto.AutoTokenizer.from_pretrained(source), kind
    try:
        found, reason = auto.AutoProcessor.from_pretrained(source), "there is none"
    except (ImportError, OSError, ValueError) as error:
        found, reason = auto.AutoTokenizer.from_pretrained(source), str(error)
    if not hasattr(found, "tokenizer"):
        said = f"no processor of {source!r} could be loaded, so only texts are read: {reason}"
        warnings.warn(said, DsasWarning, stacklevel=4)
    return found, auto.AutoModelForSpeechSeq2Seq if hears else auto.AutoModelForMultimodalLM


def fast_on_this_cpu(dtype: torch.dtype) -> bool:
    """Return whether this machine's CPU has instructions for a dtype; every CPU has them for float32."""
    if dtype not in _INSTRUCTIONS:
        return True
    said = CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.is_file() else ""
    return not _INSTRUCTIONS[dtype].isdisjoint(said.split())


def find_device(device: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU when there is one. Raises OptionError for a missing device.

    Each process of torchrun has a GPU of its own while there are enough. "balanced" and "sequential" give the device
    of "auto", for a model that is not spread and runs beside one that is.
    """
    if device in ("auto", *SPREADS):
        own = int(os.environ.get("LOCAL_RANK", "0"))
        device = f"cuda:{own % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"device {device!r} cannot be used, try 'cpu' or 'auto': {reason}") from error


def _gguf_options(file: str) -> JsonObject:
    """Return the options with which transformers reads a GGUF file into ordinary dense weights."""
    for package in ("gguf", "accelerate"):
        _need(package, "gguf")
    try:
        from transformers import GgufConfig
    except ImportError:  # releases without GgufConfig always dequantise
        return {"gguf_file": file}
    return {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True)}


def _need(package: str, extra: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise MissingExtraError(package, extra) from error


def load_pipeline(name: str, *, device: str = "auto", precision: str = "auto") -> Foreign:
    """Load a diffusers pipeline by folder or hub id, without its progress bar; device, precision as `load_model`.

    A pipeline is not spread. Raises OptionError when nothing can be loaded from `name`, as from a folder that was saved
    by another release of diffusers or transformers; MissingExtraError without diffusers.
    """
    if device in SPREADS:
        raise OptionError(f"a pipeline is loaded on one device, not {device!r}: give 'auto', 'cpu' or 'cuda'")
    place = _checked(device, precision)
    try:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusion") from error
    try:
        folder = name if Path(name).is_dir() else DiffusionPipeline.download(name)
        dtype = _stored_dtype(Path(folder)) if precision == "auto" else getattr(torch, precision)
        if precision == "auto" and place.type == "cpu" and not fast_on_this_cpu(dtype):
            dtype = torch.float32
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    except Exception as error:  # of many kinds, from several libraries
        newer = isinstance(error, (AttributeError, ImportError))  # a class that the folder names does not exist
        hint = "; it may need a newer diffusers or transformers, or a package beside them" if newer else ""
        hint = _made_by(Path(name)) or hint
        raise OptionError(f"no pipeline could be loaded from {name!r} (a folder or hub id): {error}{hint}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(place)


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the number format of a pipeline's denoiser in its folder, for all parts; float32 where none is stored.

    Left to themselves, diffusers reads its parts in float32 and transformers reads text encoders as they are stored.
    """
    for file in sorted([*folder.glob("unet/*.safetensors"), *folder.glob("transformer/*.safetensors")]):
        if "." in file.stem:  # a variant, which is not what is loaded
            continue
        with file.open("rb") as stored:
            header = json.loads(stored.read(int.from_bytes(stored.read(8), "little")))
        kinds = Counter(tensor["dtype"] for name, tensor in header.items() if name != "__metadata__")
        return _STORED.get(kinds.most_common(1)[0][0], torch.float32)
    return torch.float32


def _made_by(folder: Path) -> str:
    """Return which other release of diffusers wrote a folder, and what to do; empty if it was this one."""
    from diffusers import __version__

    try:
        written = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_diffusers_version")
    except (OSError, ValueError, AttributeError):
        return ""
    if written == __version__:
        return ""
    return f" (saved by diffusers {written}, this is {__version__}: install that release or a newer one)"


def _checked(device: str, precision: str) -> torch.device:
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    return find_device(device)
