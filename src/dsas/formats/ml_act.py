"""States of ml-act, Apple's activation transport: Linear-, Gaussian- and Mean-AcT as its hooks save them.

    {module}.statedict           one file per module, named by its path in the whole model; ":0" at the end says which
                                 of the module's outputs, of which only the first is read
    net.w1, net.b1               Linear-AcT: T(t) = w1 t + b1                       (`LinearOTHook`, `LinearProj`)
    mu1, mu2, std1, std2         Gaussian-AcT: T(t) = std2/std1 (t - mu1) + mu2     (`GaussianOTHook`)
                                 Mean-AcT:     T(t) = t - mu1 + mu2                 (`OnlyMeanHook`)
                                 where both standard deviations are above 1e-4, and t elsewhere
    quantiles_src                the ends between which a neuron is moved: [low, high], or the name of two in
                                 quantiles_dict_src; "q_all" is -1e6 and 1e6

Gaussian- and Mean-AcT save the same numbers, so the path must say which: a folder or file whose name holds gaussian_ot
or mean_ot, as ml-act names its interventions. Strength 1 is ml-act's strength 1.

Source: act/hooks/transport.py and act/hooks/intervention_hook.py of ml-act (arXiv 2410.23054).
Limitations: outputs of a module other than the first, pictures (dim second) and AurA are not read.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsas.errors import ArtifactError
from dsas.formats.published import LARGEST_LAYER, Place, Published, vector_of, whole
from dsas.formats.torch_vectors import load_torch
from dsas.transforms.affine import EVERYWHERE
from dsas.transforms.base import Transform
from dsas.transforms.gaussian import GaussianTransport
from dsas.transforms.linear import LinearTransport
from dsas.transforms.mean import MeanTransport

ENDING = ".statedict"
LEAST_SD = 1e-4
ALL = (-1e6, 1e6)


def read_ml_act(path: Path) -> Published:
    """Read one .statedict file, or a folder of them. Raises ArtifactError for anything else."""
    files = sorted(path.glob(f"*{ENDING}")) if path.is_dir() else [path]
    if not files or len(files) > LARGEST_LAYER:
        raise ArtifactError(f"{path}: expected 1 to {LARGEST_LAYER} files ending in {ENDING}, got {len(files)}")
    edits: dict[Place, Transform] = {}
    for file in files:
        module, _, output = file.name.removesuffix(ENDING).partition(":")
        if not module or output not in ("", "0"):
            raise ArtifactError(f"{file}: expected a file named after a module and its first output")
        if module in edits:
            raise ArtifactError(f"{file}: another file has a state for {module}")
        edits[module] = _transport(load_torch(file), file)
    return whole(Published("ml-act", edits))


def _transport(state: Any, file: Path) -> Transform:
    if not isinstance(state, Mapping):
        raise ArtifactError(f"{file}: expected the state of a hook of ml-act, got {type(state).__name__}")
    if "net.w1" in state and "net.b1" in state:
        slope, offset = _numbers(state, ("net.w1", "net.b1"), file)
        moves = torch.ones_like(slope, dtype=torch.bool)
        return LinearTransport(slope, offset, *_support(state, moves, file))
    if not all(name in state for name in ("mu1", "mu2", "std1", "std2")):
        said = ", ".join(map(repr, sorted(map(str, state))))
        raise ArtifactError(f"{file}: expected net.w1 and net.b1, or mu1, mu2, std1 and std2, got {said:.100}")
    mu1, mu2, std1, std2 = _numbers(state, ("mu1", "mu2", "std1", "std2"), file)
    moves = (std1 > LEAST_SD) & (std2 > LEAST_SD)
    kind = _named(file)
    slope = torch.where(moves, std2 / std1, 1.0) if kind is GaussianTransport else torch.ones_like(mu1)
    offset = torch.where(moves, mu2 - slope * mu1, 0.0)
    if not slope.isfinite().all():
        raise ArtifactError(f"{file}: std2 / std1 is not finite")
    return kind(slope, offset, *_support(state, moves, file))


def _named(file: Path) -> type[GaussianTransport] | type[MeanTransport]:
    """Return which of two methods that save the same numbers a path names; the name nearest to the file counts."""
    for part in (file.name, *(folder.name for folder in file.absolute().parents)):
        found = re.findall("mean_ot|gaussian_ot", part)
        if len(set(found)) == 1:
            return MeanTransport if found[0] == "mean_ot" else GaussianTransport
    raise ArtifactError(
        f"{file} holds means and standard deviations, which Mean-AcT and Gaussian-AcT both save: put it into "
        "a folder whose name contains mean_ot or gaussian_ot"
    )


def _support(state: Mapping[Any, Any], moves: Tensor, file: Path) -> tuple[Tensor, Tensor]:
    """Return the ends (dim,) between which neurons are moved; some states have them for moved neurons only."""
    given = state.get("quantiles_src", "q_all")
    if isinstance(given, str):
        named = state.get("quantiles_dict_src")
        given = ALL if given == "q_all" else named.get(given) if isinstance(named, Mapping) else None
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise ArtifactError(f"{file}: expected two ends in quantiles_src, got {given!r:.60}")
    ends = []
    for end, edge in zip(given, (-EVERYWHERE, EVERYWHERE), strict=True):
        if isinstance(end, int | float) and not isinstance(end, bool) and abs(end) < EVERYWHERE:
            ends.append(torch.full(moves.shape, float(end)))
            continue
        value = vector_of(end, f"{file}, quantiles_src")
        if len(value) == len(moves):
            ends.append(value)
        elif len(value) == int(moves.sum()):
            ends.append(torch.full(moves.shape, edge).masked_scatter(moves, value))
        else:
            raise ArtifactError(f"{file}: quantiles_src has {len(value)} numbers, the state {len(moves)}")
    return ends[0], ends[1]


def _numbers(state: Mapping[Any, Any], names: Sequence[str], file: Path) -> list[Tensor]:
    """Return the vectors (dim,) of a state. Raises ArtifactError where they differ in length."""
    found = [vector_of(state[name], f"{file}, {name}") for name in names]
    if len({len(one) for one in found}) > 1:
        raise ArtifactError(f"{file}: {', '.join(names)} differ in length")
    return found
