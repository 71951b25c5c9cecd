"""Questions of the demo: multiple choice with known answers, for what steering costs.

| function | source | questions | scored by | licence |
|---|---|---|---|---|
| social_iqa | SocialIQA (1904.09728), three answers | 2,224 | text of the answer, per character | CC BY 4.0 |
| quartz | QuaRTz (1909.03553), two answers | 3,860 | letter | CC BY |
| mmlu | MMLU (2009.03300), four answers, a part of its test set | 1,000 | letter | MIT |
| moral_exceptions | MoralExceptQA (2210.01478), yes or no | 148 | the word | MIT |

All come from the package evals, in its order, and go into `dsas.evaluation.choice`. SocialIQA is asked as
lm-evaluation-harness asks it ("Q: ...", then "A:"). The real models of the demo answer hardly more than chance in any
set. Of the first 600 questions of SocialIQA, SmolLM2 answers 39 % (standard error 2 %, chance 33 %), so small
losses do not show.

Limitations: no examples in the prompt.
"""

import json
import re
from pathlib import Path

from dsas.evaluation.choice import Question
from dsas.files.json_values import JsonObject
from dsas.files.pinned_packages import fetch

_SOCIAL = re.compile(r"(.+?)\s+A: (.*); B: (.*); C: (.*)\.", re.DOTALL)
_QUARTZ = re.compile(r"(.+?)\s+A: (.*)\n B: (.*)", re.DOTALL)


def social_iqa(*, cache: Path | None = None) -> list[Question]:
    """Return the questions about what people do and feel; score by the text of the answers, per character."""
    found = []
    for line in _lines("theory_of_mind/socialiqa/test.jsonl", cache):
        question, *answers = _parts(_SOCIAL, line["input"][-1]["content"])
        choices = tuple(f" {answer.strip()}" for answer in answers)
        found.append(Question(f"Q: {question}\nA:", choices, "ABC".index(line["ideal"])))
    return found


def quartz(*, cache: Path | None = None) -> list[Question]:
    """Return the questions about what grows or falls with what; the choices are letters."""
    found = []
    for line in _lines("quartz/samples.jsonl", cache):
        question, first, second = (part.strip() for part in _parts(_QUARTZ, line["input"][-1]["content"]))
        prompt = f"{question}\nA. {first}\nB. {second}\nAnswer:"
        found.append(Question(prompt, (" A", " B"), "AB".index(line["ideal"])))
    return found


def mmlu(*, cache: Path | None = None) -> list[Question]:
    """Return questions about knowledge of many subjects; the choices are letters."""
    lines = _lines("sandbagging/samples-all-large.jsonl", cache)
    return [Question(line["question"], (" A", " B", " C", " D"), "ABCD".index(line["answer"])) for line in lines]


def moral_exceptions(*, cache: Path | None = None) -> list[Question]:
    """Return the questions whether it is acceptable to break a rule, this once; the choices are yes and no."""
    found = []
    for line in _lines("moral_exceptQA/samples.jsonl", cache):
        told, asked = (message["content"] for message in line["input"])
        found.append(Question(f"{told}\n\n{asked}", (" Yes", " No"), ("Yes", "No").index(line["ideal"])))
    return found


def _parts(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    found = pattern.fullmatch(text)
    assert found is not None, text
    return found.groups()


def _lines(name: str, cache: Path | None) -> list[JsonObject]:
    file = fetch("evals", cache=cache) / "evals" / "registry" / "data" / name
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
