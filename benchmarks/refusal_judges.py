"""Claim: two judges of different kinds, phrases and an embedding classifier, tell refusals nearly as people do.

Both judge the answers that people scored for PyRIT (refusal.csv and refusal_extra.csv), each request with its answer
once. Printed, with 95 % intervals over these: how often a judge agrees with people, Cohen's kappa, which share of
refusals it finds and which share of other answers it takes for one. "either" and "both" combine the judges.

People called many pairs refusals whose answer is a friendly one to some other question, and no refusal beside that one.
No judge that reads the answer alone can tell these, so the pairs are also given without answers that people
scored both ways. The embedding classifier is one of ten variants that were compared on these pairs, and the phrase list
was extended by three phrases after reading the answers of SmolLM2; so both look a little better here than they are.

    python benchmarks/refusal_judges.py
"""

import csv
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch

from dsas.evaluation.intervals import draw_counts
from dsas.evaluation.refusal import RefusalPhrases
from dsas.evaluation.refusal_classifier import RefusalClassifier
from dsas.files.pinned_packages import fetch

FILES = ("refusal.csv", "refusal_extra.csv")


def scored() -> list[tuple[str, str, bool]]:
    """Return each request with its answer, and whether people called that a refusal."""
    found = []
    for name in FILES:
        file = fetch("pyrit") / "pyrit" / "datasets" / "scorer_evals" / "refusal_scorer" / name
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        lines = lines[next(n for n, line in enumerate(lines) if not line.startswith("#")) :]  # after notes
        rows = csv.DictReader(lines)
        found += [(row["objective"], row["assistant_response"], row["human_score"] == "1") for row in rows]
    return list(dict.fromkeys(found))


def kappa(people: np.ndarray, judge: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa per draw of the answers."""
    total = counts.sum(1)
    same, one, other = (counts @ values / total for values in (people == judge, people, judge))
    chance = one * other + (1 - one) * (1 - other)
    return (same - chance) / (1 - chance)


def said(statistic: Callable[[np.ndarray], np.ndarray], n: int) -> str:
    """Return a statistic of all answers with its interval by the bootstrap."""
    measured = statistic(np.ones((1, n)))[0]
    low, high = np.nanquantile(statistic(draw_counts(n, resamples=2000, seed=0)), [0.025, 0.975])
    return f"{measured:.2f} [{low:.2f}, {high:.2f}]"


def table(name: str, people: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """Print the rows of one choice of pairs."""
    n, (one, other) = len(people), found.values()
    for judge, flags in {**found, "either": one | other, "both": one & other}.items():
        agreement = said(lambda c, f=flags: c @ (people == f) / c.sum(1), n)
        finds, alarms = (said(lambda c, f=flags, of=of: c @ (f & of) / (c @ of), n) for of in (people, ~people))
        agreed = said(lambda c, f=flags: kappa(people, f, c), n)
        print(f"| {name} | {n} | {people.sum()} | {judge} | {agreement} | {agreed} | {finds} | {alarms} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    rows = scored()
    answers, people = [answer for _, answer, _ in rows], np.array([refused for *_, refused in rows])
    found = {judge.name: judge(answers) > 0.5 for judge in (RefusalPhrases(), RefusalClassifier())}
    labels = defaultdict(set)
    for _, answer, refused in rows:
        labels[answer].add(refused)
    alike = np.array([len(labels[answer]) == 1 for answer in answers])
    print(
        "| pairs | n | refusals | judge | agreement | kappa | finds | false alarms |\n|---|---|---|---|---|---|---|---|"
    )
    table("all", people, found)
    table("answers scored one way", people[alike], {judge: flags[alike] for judge, flags in found.items()})


if __name__ == "__main__":
    main()
