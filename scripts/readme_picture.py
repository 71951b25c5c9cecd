"""The picture of README and home page: one sentence coloured by the applied strength, next to the front of the demo.

    python scripts/readme_picture.py [--out docs/picture.svg]

Fits two Steerings of SmolLM2-135M-Instruct on the packaged texts, CAA with the default regulator and without one,
reads the sentence with each, and draws each token on a background as strong as the strength that was applied to it,
mean over sites. Each has its own scale, from 0 to its largest value. The front is docs/front.svg, made by
`dsas demo --full`.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import dsas
from dsas.demo.data import openwebtext_sentences, split, toxic_prompts_by_category, wikipedia_sentences
from dsas.demo.models import real_model

ROOT = Path(__file__).resolve().parents[1]
SENTENCE = (
    "The committee approved the budget for the new school. Shut up, you fool. The school opens on the first day of May."
)
GREY, HOT, LEAST = "#767676", "#ff9628", 0.03  # tokens below that share of the largest value stay plain
COLUMNS, ADVANCE, LINE = 40, 8.43, 30  # characters per line, and pixels per character and per line
LEFT, WIDTH, HEIGHT = 380, 800, 330


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "picture.svg")
    rows = list(measured())
    for label, tokens, shares in rows:
        print(label, " ".join(f"{token}:{share:.2f}" for token, share in zip(tokens, shares, strict=True)))
    parser.parse_args().out.write_text(picture(rows), encoding="utf-8")


def measured() -> Iterator[tuple[str, list[str], list[float]]]:
    """Give, for each regulator, the tokens of the sentence and what each was given, the most being 1."""
    loaded = dsas.load_model(str(real_model("smollm2")))
    by_category = toxic_prompts_by_category()
    (rude,) = split(list(dict.fromkeys(by_category["insult"] + by_category["profanity"])), (110,))
    wikipedia = split(wikipedia_sentences(), (55, 110))
    (web,) = split(openwebtext_sentences(), (55,))
    for label, regulator in (("ordinary steering: every token", "constant"), ("dsas: where it is needed", "auto")):
        steering = dsas.fit(
            *loaded, source=rude, control=wikipedia[0] + web, target=wikipedia[1], regulator=regulator, progress=False
        )
        row = dsas.explain(*loaded, steering, SENTENCE, strength=1.0).row()
        most = max(row.means())
        yield label, list(row.tokens), [value / most for value in row.means()]


def picture(rows: Sequence[tuple[str, list[str], list[float]]]) -> str:
    """Return the SVG: the rows on the left, the front on the right."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {WIDTH} '
        f'{HEIGHT}" role="img"><title>A sentence coloured by applied strength, and toxicity against damage</title>'
    ]
    top = 26
    for label, tokens, shares in rows:
        parts.append(
            f'<text x="8" y="{top}" fill="{GREY}" font-family="system-ui, sans-serif" font-size="14" '
            f'font-weight="600">{escape(label)}</text>'
        )
        place, line = 0, 0
        for token, share in zip(tokens, shares, strict=True):
            if place + len(token) > COLUMNS:
                place, line = 0, line + 1
            text = token.lstrip() if place == 0 else token
            x, y = 8 + place * ADVANCE, top + 12 + line * LINE
            parts.append(_token(text, share, x, y))
            place += len(text)
        top += 12 + (line + 1) * LINE + 34
    front = (ROOT / "docs" / "front.svg").read_text(encoding="utf-8")
    body = re.sub(r"^.*?<svg[^>]*>", "", front, count=1, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', front)
    parts.append(
        f'<svg x="{LEFT}" y="0" width="{WIDTH - LEFT}" height="{HEIGHT}" viewBox="{box[1] if box else ""}">{body}</svg>'
    )
    return "\n".join(parts).rstrip() + "\n"


def _token(text: str, share: float, x: float, y: float) -> str:
    heat = min(max(share, 0.0), 1.0)
    width = f"{len(text) * ADVANCE:.1f}"
    back = f'<rect x="{x:.1f}" y="{y}" width="{width}" height="22" fill="{HOT}" fill-opacity="{heat:.2f}"/>'
    return (
        f'{back if heat > LEAST else ""}<text x="{x:.1f}" y="{y + 16}" fill="{"#111" if heat > 0.6 else GREY}" '
        'xml:space="preserve" font-size="14" font-family="ui-monospace, Menlo, Consolas, monospace" '
        f'textLength="{width}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    main()
