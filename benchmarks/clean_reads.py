"""Claim: a regulator reads tokens that earlier sites have steered about as well as unsteered tokens.

What earlier sites added to the residual stream is known, so a later regulator could read the stream without it:

    clean score at site l  =  theta_l . (t - sum_{k < l} g_k v_k) + bias_l,    g_k = strength x regulator at site k

CAA with the default, fitted as in `selectivity.py`, at the strength where control texts lose the stated damage. On
texts that nothing was fitted on: the AUROC of a token's evidence, source against control of the same kind, at each
steered site but the first, read three ways: in the unsteered model, steered, and steered but read clean (while
regulators go by what they read). Means over sites, in points (hundredths), with 95 % intervals over texts, and the
largest difference of a site.

    python benchmarks/clean_reads.py [--model smollm2|gemma3] [--behaviour NAME ...] [--read 150] [--strength S]
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from behaviours import BEHAVIOURS, texts_of
from selectivity import MAX_TOKENS, ROWS, fitted, remembered

import dsas
from dsas.demo.models import real_model
from dsas.evaluation.loss_curve import Yardstick, measured_curve
from dsas.evaluation.selectivity import selectivity
from dsas.files.results import Results
from dsas.methods.tuned_boundary import Tuning
from dsas.model.hooks import Hooks
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model

WAYS = ("unsteered", "steered", "steered, read clean")
TINY = 1e-9  # a strength at which nothing changes
RESAMPLES = 200


def operating_strength(
    steering: dsas.Steering, behaviour: str, damage: float, read: int, loaded: LoadedModel, folder: Path
) -> float:
    """Return the strength at which control texts lose the damage, as `selectivity.py` finds and remembers it."""
    _, others = texts_of(behaviour, read)
    control = {"same": others.control, **others.general}
    yardstick = Yardstick(*loaded, source=others.source, control=control, max_tokens=MAX_TOKENS)
    depends = [fingerprint(loaded.model), "float32", others.source, control, MAX_TOKENS]
    losses = remembered(Results(folder / "measured"), yardstick, steering, loaded, depends)
    found = selectivity(measured_curve(losses, damage=damage, start=0.2025), damage=damage)
    assert found.strength is not None, f"no strength does a damage of {damage}"
    return found.strength.mean


def evidence_of(steering: dsas.Steering, strength: float, text: str, loaded: LoadedModel) -> np.ndarray:
    """Return (way, site, token) for the two ways of reading a text at a strength; the first token is left out."""
    rules = [rule for rule in steering.rules if rule.weight > 0]
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"][:MAX_TOKENS]])
    seen: list[torch.Tensor] = []
    with steering.apply(loaded.model, strength) as applied, Hooks() as hooks, torch.no_grad():
        for rule in rules:  # on after the steering's own, so that they see what is passed on
            hooks.at_site(loaded.model, rule.site, seen.append)
        loaded.model(ids)
    gains = applied.trace().strengths[:, 0]
    added, found = torch.zeros_like(seen[0][0]), np.empty((2, len(rules), ids.shape[1] - 1))
    for number, (rule, after) in enumerate(zip(rules, seen, strict=True)):
        regulator, vector = rule.regulator, rule.transform.get_buffer("vector")
        assert isinstance(regulator, dsas.Evidence)
        own = gains[number][:, None] * vector
        added = added + own
        tuning = Tuning(prior=regulator.prior, memory=regulator.memory)
        for way, t in enumerate((after[0] - own, after[0] - added)):
            scores = (t @ regulator.theta + regulator.bias)[1:]
            found[way, number] = tuning.so_far(scores.double().numpy())
    return found


def auroc(above: np.ndarray, below: np.ndarray) -> float:
    ranked = np.sort(below)
    beaten = (np.searchsorted(ranked, above, "left") + np.searchsorted(ranked, above, "right")) / 2
    return float(beaten.mean() / len(below))


def measured(source: Sequence[np.ndarray], control: Sequence[np.ndarray]) -> np.ndarray:
    """Return the AUROC (way, site) of tokens of these texts, each (way, site, token)."""
    high, low = np.concatenate(source, axis=2), np.concatenate(control, axis=2)
    return np.array([[auroc(*pair) for pair in zip(*ways, strict=True)] for ways in zip(high, low, strict=True)])


def shown(means: np.ndarray, drawn: np.ndarray) -> str:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{means:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--behaviour", nargs="*", default=["insults", "numbers", "he-or-she"], choices=list(BEHAVIOURS))
    parser.add_argument("--damage", type=float, default=0.02)
    parser.add_argument("--read", type=int, default=150)
    parser.add_argument("--strength", type=float, default=None, help="instead of that of the damage")
    parser.add_argument("--out", type=Path, default=Path("out/selectivity"), help="where selectivity.py keeps its fits")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    loaded = load_model(str(real_model(arguments.model)), precision="float32")
    print(f"| behaviour | strength | sites | {' | '.join(WAYS)} | steering costs | reading clean | worst site |")
    print("|---|---|---|---|---|---|---|---|---|")
    for behaviour in arguments.behaviour:
        folder = arguments.out / arguments.model / behaviour
        fit, others = texts_of(behaviour, arguments.read)
        steering = fitted(ROWS["evidence (the default)"], fit, loaded, folder)
        strength = arguments.strength or operating_strength(steering, behaviour, arguments.damage, 75, loaded, folder)
        sets = []
        for texts in (others.source, others.control):
            read = [[evidence_of(steering, s, text, loaded) for s in (TINY, strength)] for text in texts]
            sets.append([np.concatenate([plain[:1], steered])[:, 1:] for plain, steered in read])
        each, draw = 100 * measured(*sets), np.random.default_rng(0)
        draws = np.array(
            [
                100 * measured(*[[own[i] for i in draw.integers(len(own), size=len(own))] for own in sets]).mean(1)
                for _ in range(RESAMPLES)
            ]
        )
        means, cells = each.mean(1), [behaviour, f"{strength:.3g}", str(each.shape[1])]
        cells += [shown(means[way], draws[:, way]) for way in range(3)]
        cells += [shown(means[0] - means[1], draws[:, 0] - draws[:, 1])]
        cells += [shown(means[2] - means[1], draws[:, 2] - draws[:, 1])]
        print(f"| {' | '.join([*cells, f'{(each[0] - each[1]).max():.2f}'])} |", flush=True)
        print(json.dumps({"texts": list(map(len, sets)), "by site": (each[0] - each[1]).round(2).tolist()}), flush=True)


if __name__ == "__main__":
    main()
