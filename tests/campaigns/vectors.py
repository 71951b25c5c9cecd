"""Vectors: files of published vectors that were changed at random are read or end in our own error, and run nothing.

python -m campaigns.vectors --rounds 10000 --seed 0 [--ending .gguf]          (from tests/)
"""

import random
import tempfile
from collections import Counter
from pathlib import Path

import torch
from campaigns.rounds import among, begun
from makers import random_steering
from safetensors.torch import save_file

import dsas
from dsas.errors import DsasError
from dsas.testing import tiny_model

NUMBERS = (b"\xff" * 8, bytes(8), (2**40).to_bytes(8, "little"), (2**63 - 1).to_bytes(8, "little"))


def originals(folder: Path) -> dict[Path, bytes]:
    """Write one file of each kind and return their bytes."""
    steering = random_steering(tiny_model("llama", layers=3), [1, 2], regulator=dsas.Constant())
    dsas.write_gguf(steering, folder / "a.gguf")
    torch.save({0: torch.ones(32), 2: torch.ones(32)}, folder / "layers.pt")
    torch.save({"layers.0": {"steering_vector": torch.ones(32), "action": "add"}}, folder / "modules.pt")
    torch.save(torch.ones(4, 32), folder / "rows_diff.pt")
    save_file({"layer.1": torch.ones(32)}, folder / "a.safetensors")
    state = {"net.w1": torch.ones(1, 32), "net.b1": torch.ones(1, 32), "quantiles_src": [-1e6, 1e6]}
    torch.save(state, folder / "layers.0.statedict")
    (folder / "layers.0").mkdir()
    save_file({"W_dec": torch.ones(3, 32), "b_dec": torch.ones(32)}, folder / "layers.0" / "sae.safetensors")
    line = f"sparsify,add,{folder},layers.0,1,0.5"
    (folder / "a.csv").write_text(
        f"loader,action,sparse_model,hookpoint,feature_index,steering_coefficient\n{line}\n", encoding="utf-8"
    )
    return {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def changed(data: bytes, drawn: random.Random) -> bytes:
    """Cut a file, change some of its bytes, most often near its beginning, or one of its numbers."""
    whole, how = bytearray(data), drawn.random()
    if how < 0.25:
        del whole[drawn.randrange(len(whole)) :]
    elif how < 0.75:
        for _ in range(drawn.choice((1, 1, 2, 8))):
            whole[drawn.randrange(min(len(whole), 2000 if how < 0.5 else len(whole)))] = drawn.randrange(256)
    else:
        place = drawn.randrange(len(whole) - 8)
        whole[place : place + 8] = drawn.choice(NUMBERS)
    return bytes(whole)


def run(rounds: int, seed: int, endings: tuple[str, ...] = ("",)) -> Counter[str]:
    """Return how often which end came, of files with one of these endings, or of all."""
    drawn, found = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        files = {file: data for file, data in originals(Path(root)).items() if file.name.endswith(endings)}
        for _ in among(rounds):
            file = drawn.choice(sorted(files))
            file.write_bytes(changed(files[file], drawn))
            try:
                dsas.read_vectors(file)
                found["read"] += 1
            except DsasError:
                found["our error"] += 1
            except Exception as error:
                found[f"WRONG {file.suffix} {type(error).__name__}: {error}"[:100]] += 1
    return found


if __name__ == "__main__":
    asked = begun(__doc__, 10_000, parts="ending", names=(".gguf", ".pt", ".safetensors", ".statedict", ".csv"))
    counts = run(asked.rounds, asked.seed, tuple(asked.ending or [""]))
    print(f"{counts.total()} rounds, {asked.ending or 'all'}: {dict(counts)}")
    raise SystemExit(any("WRONG" in what for what in counts))
