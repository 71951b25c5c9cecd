"""The language: what readers stumbled over does not come back, in pages, docstrings, help and messages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.py")]
SOURCES = [path for part in ("src", "examples", "scripts", "benchmarks") for path in (ROOT / part).rglob("*.py")]

UNITS = (
    "nats|lines?|values?|numbers?|FLOPs|rows?|columns?|files?|vectors?|microseconds|us|ms|texts|tokens|one|pictures?|"
    "images?|logits|seeds|draws|continuations?|prompts|questions|bias(?:es)?|megabytes|seconds"
)
THINGS = (
    "token|text|site|row|step|prompt|layer|neuron|request|question|picture|line|cell|seed|set|image|batch|draw|method|"
    "Steering|file|process|worker"
)
STUMBLES = {
    "'a' that means 'per'": re.compile(
        rf"\b({UNITS}) an? ({THINGS})\b(?!'s| (encoder|of|that|which|in|from|and|has|is|by|as|with|at|to))"
    ),
    "a fragment that hangs to the left": re.compile(r"(?:^|\. |\"\"\"|^\s*# |\| )(Of|Behind) [^.:|`]{1,40}: "),
    "what an argument is of, without what it is": re.compile(
        r"(?<![`\"'\w])[a-z_]+: of (the|each|what|an?|its|all|both|one|which)\b(?=[^=]*$)"
    ),
    "'left out:' for limitations": re.compile(r"\bLeft out:"),
    "'told apart' for separated or distinguished": re.compile(r"\btold apart\b|\bcannot be told\b"),
    "another word for the regulator": re.compile(r"\b(coeff|coefficient of steering|hook point|scale factor)\b"),
}


@pytest.mark.parametrize("form", STUMBLES)
def test_no_page_and_no_source_has_a_form_that_readers_stumbled_over(form: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in [*PAGES, *SOURCES]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if STUMBLES[form].search(line) and "docs: as it is" not in line
    ]
    assert found == []
