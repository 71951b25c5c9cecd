"""GGUF control vectors, as llama.cpp, repeng and EasySteer read and write them.

A tensor "direction.N" is added to the output of decoder layer N, counted from 0. llama.cpp has none for layer 0, and
refuses a file with one, or with other tensors than F32. Every type that the package gguf can turn into numbers is
read, from GGUF versions 2 and 3. Sources: `llama_adapter_cvec::apply` and `common_control_vector_load` in llama.cpp;
`ControlVector.export_gguf` and `ControlModel` in repeng 0.4; the readers of EasySteer, which take "steervector", too.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsas.errors import ArtifactError, DsasWarning, MissingExtraError, OptionError, StrengthError
from dsas.files.atomic import replace_files
from dsas.formats.published import LARGEST_LAYER, Published, additions
from dsas.regulators.constant import Constant
from dsas.steering.steering import Steering
from dsas.transforms.affine import Translation

ARCHITECTURE = "controlvector"
_READ = (ARCHITECTURE, "steervector")
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)")


def read_gguf(file: Path) -> Published:
    """Read a control vector. Raises ArtifactError for any other file, MissingExtraError without the extra `gguf`."""
    package = _package()
    try:
        reader = package.GGUFReader(file)
        kind = _field(reader, "general.architecture")
        hint = _field(reader, f"{kind}.model_hint") if kind in _READ else None
        tensors = [(str(one.name), one.tensor_type, one.data) for one in reader.tensors]
    except Exception as error:  # of the reader, on files that anybody may have made
        raise ArtifactError(f"{file} is not a GGUF file that the package gguf can read: {error!r:.80}") from error
    if kind not in _READ:
        raise ArtifactError(f"{file} holds {kind!r:.40}: expected a control vector ({ARCHITECTURE!r})")
    vectors: dict[int, Any] = {}
    for name, form, data in tensors:
        prefix, _, number = name.partition(".")
        if prefix != "direction" or not number.isdecimal() or int(number) > LARGEST_LAYER or int(number) in vectors:
            raise ArtifactError(f"{file}: expected tensors named direction.N, each once, got {name!r:.60}")
        try:
            vectors[int(number)] = package.dequantize(data, form)
        except Exception as error:  # of types without numbers, and sizes that are none of theirs
            raise ArtifactError(f"{file}: {name} is stored as {form.name}: expected real numbers") from error
    return additions("gguf", vectors, of=hint if isinstance(hint, str) else "")


def write_gguf(
    steering: Steering, file: str | Path, *, strength: float | None = None, gains: Mapping[str, float] | None = None
) -> None:
    """Write what a Steering adds at layer outputs as a control vector for llama.cpp, repeng and EasySteer.

    strength: what the vectors are multiplied by, `default_strength` unless given; use the file at scale 1.
    gains: for the path of a site, the number that replaces its regulator, such as the regulator's mean over some texts;
    the file and a warning say so. Without them such a Steering is refused.
    Raises OptionError, naming the rule, for what is no addition at the output of a decoder layer above the first, and
    for a Composition or a file that cannot be there; StrengthError where a vector overflows.
    """
    if Path(file).is_dir() or not Path(file).absolute().parent.is_dir():
        raise OptionError(f"expected a file in a folder that is there, got {str(file)!r}")
    if not isinstance(steering, Steering):
        raise OptionError(f"expected one Steering, got a {type(steering).__name__}: add several up with + first")
    package, factor = _package(), steering.default_strength if strength is None else strength
    vectors, replaced = dict[int, np.ndarray](), list[str]()
    for rule in steering.rules:
        if not rule.weight or not factor:
            continue
        layer, gain = _LAYER.fullmatch(rule.site.path), (gains or {}).get(rule.site.path)
        if layer is None or str(rule.site) != rule.site.path:
            raise _refused(rule, "it is not at the output of a decoder layer")
        if int(layer[1]) == 0:
            raise _refused(rule, "llama.cpp has no vector for the first layer")
        if not isinstance(rule.transform, Translation):
            raise _refused(rule, f"{type(rule.transform).__name__} adds no vector")
        if not isinstance(rule.regulator, Constant):
            if gain is None:
                raise _refused(rule, f"{type(rule.regulator).__name__} looks at the token, and a control vector cannot")
            replaced.append(rule.site.path)
        else:
            gain = rule.regulator.value
        vector = rule.transform.coefficients().offset
        vectors[int(layer[1])] = (vector * (factor * rule.weight * gain)).numpy().astype(np.float32)
        if not np.isfinite(vectors[int(layer[1])]).all():
            raise StrengthError(f"at strength {factor:g} the vector of {rule.site} is beyond what float32 holds")
    if not vectors:
        raise OptionError("this Steering adds nothing at any site, so there is nothing to write")
    note = f"mean gains instead of regulators at {len(replaced)} sites" if replaced else ""
    replace_files({Path(file): _gguf(package, vectors, steering.model.model_class, note)})
    if replaced:
        warnings.warn(
            f"{file}: the regulators at {len(replaced)} sites, such as {replaced[0]}, are replaced by their mean "
            "gains: it steers every token of every text",
            DsasWarning,
            stacklevel=2,
        )


def _field(reader: Any, name: str) -> Any:
    found = reader.get_field(name)
    return None if found is None else found.contents()


def _gguf(package: Any, vectors: Mapping[int, np.ndarray], model: str, note: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "vector.gguf"
        writer = package.GGUFWriter(written, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", re.sub(r"(ForCausalLM|LMHeadModel)$", "", model).lower())
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        if note:
            writer.add_description(note)
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"direction.{layer}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return written.read_bytes()


def _refused(rule: Any, why: str) -> OptionError:
    return OptionError(f"the rule at {rule.site} cannot be written as a control vector: {why}")


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf") from error
    return gguf
