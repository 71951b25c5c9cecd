"""No claim of its own: it tries ideas for a sharper regulator on tuning texts; the best is reported on others.

CAA with a regulator is varied in one thing at a time (`idea_list.py`): texts, labels, regulator, sites, transform; and
it is trained on pairs of continuations. Each gets the largest strength within a budget of perplexity on three kinds of
clean text: Wikipedia, clean prompts, and the model's own clean continuations. Printed are, at that strength, how many
continuations of tuning prompts are toxic, the same over the first row's (paired by prompt), and by how many nats per
token toxic continuations of these prompts became less probable than clean ones. No text that `evidence.py` reports on
is read. If interrupted, it resumes.

    python benchmarks/ideas.py --model smollm2|gemma3 [--budget 1.02] [--only NAME ...] [--out out/ideas]
"""

import argparse
import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from evidence import SIZES, opened
from idea_list import IDEAS, Material
from pairs import clean_of

import dsas
from dsas.demo.data import split, toxic_prompts
from dsas.demo.texts import CLEAN_BELOW, DRAWS, TOXIC_ABOVE
from dsas.evaluation.generations import sample_continuations
from dsas.evaluation.intervals import bootstrap, bootstrap_ratio
from dsas.evaluation.judged import judged
from dsas.evaluation.perplexity import perplexity
from dsas.evaluation.scorers import packaged_scorers
from dsas.evaluation.toxicity import toxicity
from dsas.files.results import Results
from dsas.model.identity import fingerprint

SEEDS = range(8)
START, LIMITS, HALVINGS = 0.1, (0.001, 64.0), 2


class Continued(NamedTuple):
    """Prompts with a continuation each."""

    prompts: list[str]
    texts: list[str]

    @classmethod
    def of(cls, pairs: list[tuple[str, str]]) -> "Continued":
        """Put pairs of a prompt and a text together."""
        return cls([prompt for prompt, _ in pairs], [text for _, text in pairs])


class Lab(NamedTuple):
    """What every idea is measured with; `clean` and `toxic` are continuations that the unsteered model drew."""

    material: Material
    prompts: list[str]
    neutral: dict[str, list[str]]
    clean: Continued
    toxic: Continued
    folder: Path
    identity: str

    def measured(self, name: str, steering: dsas.Steering | None, strength: float, what: Callable[[], Any]) -> Any:
        """Return what a measurement gives under a Steering, and remember it."""
        marks = "" if steering is None else marks_of(steering)

        def measure() -> Any:
            with nullcontext() if steering is None else steering.apply(self.material.loaded.model, strength):
                return what()

        depends = [name, self.identity, marks, strength, self.prompts, self.neutral, self.clean, self.toxic]
        return Results(self.folder / "measured").remember(name, depends, measure)

    def nats(self, steering: dsas.Steering | None, strength: float) -> dict[str, float]:
        """Return the mean perplexity of each kind of clean text, and mean nats per token of both continuations."""
        loaded = self.material.loaded

        def read() -> dict[str, float]:
            found = {kind: perplexity(*loaded, texts).mean for kind, texts in self.neutral.items()}
            for kind, pairs in (("clean", self.clean), ("toxic", self.toxic)):
                found[kind] = judged(*loaded, pairs.prompts, [pairs.texts]).mean
            return found

        return self.measured("nats", steering, strength, read)

    def scores(self, steering: dsas.Steering | None, strength: float) -> np.ndarray:
        """Return the ensemble's scores of continuations, by prompt and seed."""
        loaded = self.material.loaded

        def draw() -> list[list[float]]:
            texts = sample_continuations(*loaded, self.prompts, seeds=SEEDS)
            return toxicity(texts, self.material.scorers).ensemble.tolist()

        return np.array(self.measured("scores", steering, strength, draw))

    def cost(self, steering: dsas.Steering, strength: float) -> float:
        """Return perplexity over unsteered, mean over the kinds of clean text."""
        plain, found = self.nats(None, 0.0), self.nats(steering, strength)
        ratios = [found[kind] / plain[kind] for kind in self.neutral]
        return float(np.mean([*ratios, np.exp(found["clean"] - plain["clean"])]))


def marks_of(steering: dsas.Steering) -> str:
    """Return what identifies this Steering, including regulators that are in no registry."""
    digest = hashlib.sha256()
    for rule in steering.rules:
        digest.update(f"{rule.site} {rule.weight} {type(rule.regulator).__name__}".encode())
        for part in (rule.transform, rule.regulator):
            digest.update(repr(getattr(part, "decay", "")).encode())
            for _, value in sorted(part.state_dict().items()):
                digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def prepared(name: str, out: Path) -> Lab:
    """Open the model and its texts and draw the continuations."""
    folder, loaded, texts = opened(name, out, SIZES._replace(draws=36))
    scorers, identity = packaged_scorers(), fingerprint(loaded.model)
    fit_prompts = split(toxic_prompts(), SIZES[:1])[0]
    clean_prompts = clean_of(fit_prompts, scorers)
    prompts = texts.tune_prompts
    drawn = Results(folder / "measured").remember(
        "drawn",
        [identity, prompts],
        lambda: sample_continuations(*loaded, prompts, seeds=range(500, 512), sampling=DRAWS),
    )
    pairs = [(prompt, text) for some in drawn for prompt, text in zip(prompts, some, strict=True) if text.strip()]
    scores = np.stack([scorer([prompt + text for prompt, text in pairs]) for scorer in scorers])
    toxic = [pair for pair, mean in zip(pairs, scores.mean(0), strict=True) if mean > TOXIC_ABOVE]
    clean = [pair for pair, most in zip(pairs, scores.max(0), strict=True) if most < CLEAN_BELOW][: len(toxic)]
    neutral = {kind: texts.tune[kind] for kind in ("Wikipedia", "prompt style")}
    material = Material(loaded, texts, fit_prompts, clean_prompts, scorers, folder)
    return Lab(material, prompts, neutral, Continued.of(clean), Continued.of(toxic), folder, identity)


def largest(cost: Callable[[float], float], budget: float) -> float:
    """Return the largest strength found within the budget, by doubling or halving and then halving the step."""
    low, high = LIMITS
    strength = START
    if cost(strength) <= budget:
        while 2 * strength <= high and cost(2 * strength) <= budget:
            strength *= 2
    else:
        while cost(strength) > budget:
            strength /= 2
            if strength < low:
                return 0.0
    step = 2.0
    for _ in range(HALVINGS):
        step **= 0.5
        if strength * step <= high and cost(round(strength * step, 5)) <= budget:
            strength = round(strength * step, 5)
    return strength


def row_of(name: str, lab: Lab, budget: float, first: np.ndarray | None) -> tuple[dict[str, Any], np.ndarray]:
    """Fit an idea, choose its strength and measure it there; return its row, JSON-ready, and its scores."""
    material = lab.material
    made = IDEAS[name](material)
    if isinstance(made, dict):
        asked = {"regulator": "logistic", **material.sets(), **made}
        made = dsas.fit(*material.loaded, **asked, checkpoint=lab.folder / "collected", progress=False)
    steering = made
    strength = largest(lambda value: lab.cost(steering, value), budget)
    scores = lab.scores(steering, strength) if strength else lab.scores(None, 0.0)
    plain = lab.nats(None, 0.0)
    found = lab.nats(steering, strength) if strength else plain
    row = {
        "idea": name,
        "sites": sum(rule.weight > 0 for rule in steering.rules),
        "accuracy": float(np.mean([rule.accuracy for rule in steering.rules if rule.accuracy is not None] or [np.nan])),
        "strength": strength,
        "toxic": bootstrap(scores > 0.5)._asdict(),
        "score": bootstrap(scores)._asdict(),
        "score over the first": None if first is None else bootstrap_ratio(scores, first)._asdict(),
        "nats": (found["toxic"] - plain["toxic"]) - (found["clean"] - plain["clean"]),
        "perplexity": {kind: found[kind] / plain[kind] for kind in lab.neutral},
        "clean": float(np.exp(found["clean"] - plain["clean"])),
    }
    return row, scores


def shown(row: dict[str, Any]) -> str:
    """Return a row as a line of Markdown."""
    over, toxic, score = row["score over the first"], row["toxic"], row["score"]
    cells = [
        row["idea"],
        f"{row['sites']}",
        f"{row['strength']:.3g}",
        f"{100 * toxic['mean']:.1f} [{100 * toxic['low']:.1f}, {100 * toxic['high']:.1f}]",
        f"{score['mean']:.3f}",
        "-" if over is None else f"{over['mean']:.2f} [{over['low']:.2f}, {over['high']:.2f}]",
        f"{row['nats']:.2f}",
        *(f"{value:.3f}" for value in row["perplexity"].values()),
        f"{row['clean']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--budget", type=float, default=1.02)
    parser.add_argument("--only", nargs="*", default=list(IDEAS), choices=list(IDEAS))
    parser.add_argument("--out", type=Path, default=Path("out/ideas"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lab = prepared(arguments.model, arguments.out)
    counts = {"source": len(lab.material.texts.source), "clean prompts": len(lab.material.clean_prompts)}
    print({**counts, "toxic to read": len(lab.toxic.texts), "prompt style": len(lab.neutral["prompt style"])})
    plain = lab.scores(None, 0.0)
    print("unsteered", bootstrap(plain > 0.5), bootstrap(plain).mean, flush=True)
    rows: list[dict[str, Any]] = []
    first = None
    for name in dict.fromkeys([next(iter(IDEAS)), *arguments.only]):
        row, scores = row_of(name, lab, arguments.budget, first)
        first = scores if first is None else first
        rows.append(row)
        print(shown(row), flush=True)
        (lab.folder / f"ideas-{arguments.budget}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
