"""Claim: within one text, insulting tokens get several times the strength that neutral tokens get.

A Steering is fitted as the demo fits it; 48 labelled sentences, half neutral and half insult, are then explained.
Prints the mean applied strength on insults over that on neutral tokens, and the AUROC of a token's strength (mean over
sites) for its label: pooled over all tokens, and within each text. Intervals are 95 %, by bootstrap over texts.

    python benchmarks/token_spans.py [--model smollm2|gemma3] [--out out/demo] [--strength 0.12] [--sites residual]
"""

import argparse
import json
from pathlib import Path

import numpy as np
from labelled import labelled_texts
from sklearn.metrics import roc_auc_score

import dsas
from dsas.demo.models import real_model
from dsas.demo.texts import bare_setup, demo_texts
from dsas.evaluation.intervals import bootstrap, bootstrap_ratio
from dsas.model.loading import load_model

RESAMPLES = 2000


def fitted(loaded, folder: Path, sites: str) -> dsas.Steering:
    """Return the demo's Steering, CAA + DSAS."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = demo_texts(folder, bare_setup(loaded.model.name_or_path, loaded), progress=False)
    sets = {"source": texts.source, "control": texts.control, "target": texts.target}
    print(json.dumps({"fitted on": {name: len(members) for name, members in sets.items()}}))
    return dsas.fit(*loaded, **sets, sites=sites, regulator="logistic", checkpoint=folder / "collected", progress=False)


def judge(values: list[np.ndarray], labels: list[np.ndarray]) -> dict[str, object]:
    """Return the ratio and the AUROCs of values per token, with intervals over texts."""
    insults = np.array([[v[y].mean()] for v, y in zip(values, labels, strict=True)])
    neutral = np.array([[v[~y].mean()] for v, y in zip(values, labels, strict=True)])
    within = np.array([[roc_auc_score(y, v)] for v, y in zip(values, labels, strict=True)])
    every, truth = np.concatenate(values), np.concatenate(labels)
    of_text = np.repeat(np.arange(len(values)), [len(v) for v in values])
    chosen = np.random.default_rng(0).multinomial(len(values), [1 / len(values)] * len(values), size=RESAMPLES)
    draws = [roc_auc_score(truth, every, sample_weight=weights[of_text]) for weights in chosen]
    return {
        "insult / neutral": bootstrap_ratio(insults, neutral)._asdict(),
        "AUROC pooled": [roc_auc_score(truth, every), *np.quantile(draws, (0.025, 0.975)).tolist()],
        "AUROC within a text": bootstrap(within)._asdict(),
        "texts with a ratio >= 3": int((insults >= 3 * neutral).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--strength", type=float, default=0.12)
    parser.add_argument("--sites", default="residual")
    arguments = parser.parse_args()
    loaded = load_model(str(real_model(arguments.model)))
    steering = fitted(loaded, arguments.out, arguments.sites)
    texts = labelled_texts()
    for skip_sinks in (False, True):
        trace = dsas.explain(
            *loaded, steering, [text.text for text in texts], strength=arguments.strength, skip_sinks=skip_sinks
        )
        rows = trace.rows()
        values = [np.array(row.means()) for row in rows]
        labels = [np.array(text.labels(list(row.tokens))) for text, row in zip(texts, rows, strict=True)]
        facts = {"model": arguments.model, "sites": len(trace.sites), "skip_sinks": skip_sinks}
        counts = {"texts": len(texts), "tokens": int(trace.real.sum()), "insult": int(sum(y.sum() for y in labels))}
        print(json.dumps({**facts, **counts, **judge(values, labels)}, indent=2))
        first = [round(float(v), 4) for v in (values[0][labels[0]].mean(), values[0][~labels[0]].mean())]
        print(json.dumps({"first text: insult, neutral": first, "ratio": round(first[0] / first[1], 2)}))


if __name__ == "__main__":
    main()
