"""Sets: the part of the texts that training holds out."""

import torch

from dsas.model.conversation import Content, as_text
from dsas.training.plan import HeldOut


def held_apart(texts: dict[str, list[Content]], held_out: HeldOut, *, paired: bool) -> dict[str, list[Content]]:
    """Return the sets with a share of source and control, at least one text if it is not 0, held out.

    paired: whether target is held out together with source; pairs are sorted by their texts and a contiguous run is
    held out, so that pairs with a common beginning stay together, except at the ends of the run.
    """
    draw, found = torch.Generator().manual_seed(held_out.seed), dict(texts)
    for name in ("source", "control"):
        members = texts[name]
        count = max(1, round(held_out.share * len(members))) if held_out.share and members else 0
        if paired and name == "source":
            first = int(torch.randint(len(members), (1,), generator=draw))
            order = sorted(range(len(members)), key=lambda number: (as_text(members[number]), number))
            order = order[first:] + order[:first]
        else:
            order = torch.randperm(len(members), generator=draw).tolist()
        held = set(order[:count])
        for one in (name, "target") if paired and name == "source" else (name,):
            found[one] = [text for number, text in enumerate(texts[one]) if number not in held]
            found[f"held_{one}"] = [text for number, text in enumerate(texts[one]) if number in held]
    return found
