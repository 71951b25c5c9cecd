"""Claim: the relative cost of steering falls with the width of the model, and grows only with the number of Steerings.

Decoding steps of random Llamas in float32, every default site with CAA and a logistic regulator, over the unsteered
model, as `overhead.py` pairs them: by width, by depth, and by how many Steerings are composed. It prints the medians
and draws them.

    python benchmarks/scaling.py [--pairs 11] [--out docs/lab/scaling.svg]
"""

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from overhead import STRENGTH, composed, decode, eager, load, random_steering

WIDTHS, DEPTHS, COUNTS = (128, 256, 512, 1024), (4, 8, 16, 32), (1, 2, 4, 8, 16)
WIDTH, DEPTH = 512, 8


def measured(width: int, depth: int, counts: tuple[int, ...], pairs: int) -> list[dict[str, Any]]:
    """Return the spread of the ratio for every number of Steerings."""
    torch.manual_seed(0)
    model = load(f"{width}x{depth}", torch.float32)
    steering = random_steering(model)
    ways = {
        str(count): lambda m, count=count: (
            composed(m, steering, count) if count > 1 else steering.apply(m, STRENGTH, record=False)
        )
        for count in counts
    }
    return list(eager(model, decode, 1, ways, pairs).values())


def drawn(found: dict[str, dict[int, dict[str, Any]]]) -> Figure:
    """Return a figure with a panel for each of width, depth and number: medians, and bars over quartiles."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(found), sharey=False), found.items(), strict=True):
        middle = [point["median"] for point in points.values()]
        low, high = zip(*(point["quartiles"] for point in points.values()), strict=True)
        spread = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        axes.errorbar(list(points), middle, yerr=spread, marker="o", capsize=3)
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(points), [str(value) for value in points])
        axes.set_xlabel(name)
    figure.axes[0].set_ylabel("steered / unsteered decoding step")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path("out/scaling.svg"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    pairs = arguments.pairs
    found = {
        f"width ({DEPTH} layers)": {width: measured(width, DEPTH, (1,), pairs)[0] for width in WIDTHS},
        f"layers (width {WIDTH})": {depth: measured(WIDTH, depth, (1,), pairs)[0] for depth in DEPTHS},
        f"Steerings composed ({WIDTH} x {DEPTH})": dict(
            zip(COUNTS, measured(WIDTH, DEPTH, COUNTS, pairs), strict=True)
        ),
    }
    print(json.dumps({"load before": os.getloadavg()[0], "threads": torch.get_num_threads(), **found}, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    drawn(found).savefig(arguments.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
