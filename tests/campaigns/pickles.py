"""Pickles: stored models that were changed at random end in our own error, or are read as what they then say.

python -m campaigns.pickles --rounds 20000 --seed 0          (from tests/)
"""

import io
import pickle
import random
import tempfile
import warnings
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import joblib
import numpy as np
from campaigns.rounds import among, begun
from sklearn.linear_model import LogisticRegression

from dsas.errors import ArtifactError
from dsas.evaluation.pickles import load_pickle

NAMES = ["sklearn.linear_model._logistic.LogisticRegression"]


def originals() -> list[bytes]:
    """Return pickles of all protocols, and a joblib file, of one content."""
    model = LogisticRegression().fit(np.array([[0.0], [1.0]]), [0, 1])
    held = [OrderedDict(a=1), defaultdict(int, b=2), np.arange(6.0).reshape(2, 3), np.float64(3.5), model, {"c": 2**70}]
    dumped = io.BytesIO()
    joblib.dump(held, dumped)
    return [dumped.getvalue(), *(pickle.dumps(held, protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1))]


def changed(data: bytes, drawn: random.Random) -> bytes:
    """Return bytes with one to four places flipped, overwritten, removed, doubled or cut."""
    whole = bytearray(data)
    for _ in range(drawn.randint(1, 4)):
        place, length = drawn.randrange(len(whole)), drawn.randint(1, 12)
        how = drawn.randrange(5)
        if how == 0:
            whole[place] ^= 1 << drawn.randrange(8)
        elif how == 1:
            whole[place : place + length] = drawn.randbytes(length)
        elif how == 2:
            whole[place:place] = whole[place : place + length]
        elif len(whole) > length + 1:
            del whole[place : place + length if how == 3 else len(whole) - 1]
    return bytes(whole)


def run(rounds: int, seed: int) -> Counter[str]:
    """Return how often which end came."""
    drawn, found, whole = random.Random(seed), Counter[str](), originals()
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(root) / "a.pkl"
        for _ in among(rounds):
            file.write_bytes(changed(drawn.choice(whole), drawn))
            try:
                load_pickle(file, NAMES)
                found["read"] += 1
            except ArtifactError:
                found["our error"] += 1
            except Exception as error:
                found[f"WRONG {type(error).__name__}: {error}"[:90]] += 1
    return found


if __name__ == "__main__":
    asked = begun(__doc__, 20_000)
    counts = run(asked.rounds, asked.seed)
    print(f"{counts.total()} rounds: {dict(counts.most_common())}")
    raise SystemExit(any("WRONG" in what for what in counts))
