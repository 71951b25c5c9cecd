"""Claim: where a concept is steered decides what it costs other pictures.

CAA with the logistic regulator on the scene model, at six kinds of sites: the smallest strength that leaves each
concept in at most a tenth of 40 tuning pictures, and what it changes in 40 control pictures. Only tuning captions are
used: this chooses sites, and says nothing about new captions. Pictures in --out are reused.

    python benchmarks/picture_sites.py [--out out/pictures]
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from picture_lab import CONCEPTS, LEFT, SITES, STRENGTHS, TUNING, Lab, share, task_of
from scenes import read

from dsas.evaluation.intervals import bootstrap
from dsas.evaluation.picture_change import picture_change

KINDS = (SITES, "unet.**.attn1", "mlp", "norm", "residual", "text")
SMALLER = (0.1, 0.2, 0.35, 0.5, 0.75)  # where many sites act, little is enough


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("out/pictures"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for kind in KINDS:
        lab = Lab(arguments.out, kind)
        for concept, word in CONCEPTS.items():
            task = task_of(concept, word, n=1)
            steering = lab.steerings(task, ("caa",))["caa + logistic"]
            for strength in (*SMALLER, *STRENGTHS):
                asked = lab.painted(task.tune.source, TUNING, steering, strength)
                if share(asked, concept=concept) <= LEFT:
                    break
            before, after = (lab.painted(task.tune.control, TUNING, *how) for how in ((), (steering, strength)))
            same = [one.scene == two.scene for one, two in zip(read(before), read(after), strict=True)]
            row = {
                "kind": kind, "sites": len(steering.rules), "concept": concept, "strength": strength,
                "left": share(asked, concept=concept), "instead": share(asked, concept=word),
                "change": bootstrap(picture_change(before, after).everywhere[:, None])._asdict(),
                "as before": bootstrap(np.array(same)[:, None])._asdict(),
            }  # fmt: skip
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
