"""Sets: the texts that training is given, checked, and the part of them that is held out."""

from collections.abc import Sequence

import torch

from dsas.errors import TextsError
from dsas.model.examples import check_texts


def checked(
    source: Sequence[str], target: Sequence[str], control: Sequence[str], *, needed: bool, paired: bool
) -> dict[str, list[str]]:
    """Return the sets by name. needed: control must be there. paired: source[i] goes with target[i], and differs.

    Raises TextsError.
    """
    if needed and not control:
        raise TextsError("control texts are needed to learn a regulator: give control=")
    given = {"source": source, "control": control, "target": target}
    found = {name: check_texts(name, texts) if texts or name != "control" else [] for name, texts in given.items()}
    if paired and len(found["source"]) != len(found["target"]):
        raise TextsError(
            "preference takes pairs, source[i] with target[i]: expected as many of both, got "
            f"{len(found['source'])} and {len(found['target'])}"
        )
    both = enumerate(zip(found["source"], found["target"], strict=False))
    same = [number for number, (one, other) in both if one == other] if paired else []
    if same:
        raise TextsError(f"source[{same[0]}] and target[{same[0]}] are the same text: nothing is to be preferred")
    return found


def held_apart(texts: dict[str, list[str]], share: float, seed: int, *, paired: bool) -> dict[str, list[str]]:
    """Return the sets with `share` of source and control, at least one text if share is not 0, held out.

    paired: target is held out with source; pairs are sorted by their texts and a run of them is held, so that those
    that go on from one beginning stay together, but for the run's ends.
    """
    draw, found = torch.Generator().manual_seed(seed), dict(texts)
    for name in ("source", "control"):
        members = texts[name]
        count = max(1, round(share * len(members))) if share and members else 0
        if paired and name == "source":
            first = int(torch.randint(len(members), (1,), generator=draw))
            order = sorted(range(len(members)), key=lambda number: (members[number], number))
            order = order[first:] + order[:first]
        else:
            order = torch.randperm(len(members), generator=draw).tolist()
        held = set(order[:count])
        for one in (name, "target") if paired and name == "source" else (name,):
            found[one] = [text for number, text in enumerate(texts[one]) if number not in held]
            found[f"held_{one}"] = [text for number, text in enumerate(texts[one]) if number in held]
    return found
