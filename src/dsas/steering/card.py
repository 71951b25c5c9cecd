"""Card: the README of a stored Steering, with all that is needed to use it, in Markdown with the hub's front matter.

It says what the Steering does and for which model, how to apply it, its strength with the evidence, its limits, and how
it was made. What the Steering itself cannot know is given to `Steering.described`, and stored in its settings under
"card".
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dsas.errors import OptionError
from dsas.files.json_values import Json, JsonObject
from dsas.model.identity import ModelIdentity
from dsas.runtime.rule import Rule
from dsas.steering.calibration_record import Calibration
from dsas.steering.subject_words import draws, in_words, subject_name, told_settings

KEY = "card"
_LICENCE, _MODEL = re.compile(r"[A-Za-z0-9][\w.+-]{0,60}"), re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_OF_MODEL = "with steering.apply(model):\n    model.generate(...)"
_OF_PIPELINE = 'with steering.apply(pipeline):\n    pipeline("...").images'
ALWAYS = (
    "It makes the behaviour less frequent and does not rule it out: measure on your own texts before you rely on it.",
    "It fits models of the family, width and depth above. For other weights of the family (tuned, quantised), "
    "`dsas port` says whether its regulators still work.",
)


class Facts(NamedTuple):
    """What a card shows about a Steering."""

    model: ModelIdentity
    rules: Sequence[Rule]
    settings: Mapping[str, Json]
    calibration: Calibration | None
    shown: str  # its repr


def description(what: str, model: str, licence: str, evidence: Sequence[str], limits: Sequence[str]) -> JsonObject:
    """Return what a card says beyond the Steering itself. Raises OptionError, naming what cannot be shown."""
    if not what.strip():
        raise OptionError("expected a sentence that says what the Steering does, got nothing")
    if licence and not _LICENCE.fullmatch(licence):
        raise OptionError(f"expected a licence by its short name, such as apache-2.0, got {licence!r:.60}")
    if model and not _MODEL.fullmatch(model):
        raise OptionError(f"expected the model as OWNER/NAME, got {model!r:.60}")
    if isinstance(evidence, str) or isinstance(limits, str):
        raise OptionError("expected evidence and limits as lists of sentences, got a single text")
    return {
        "what": " ".join(what.split()),
        "model": model,
        "licence": licence.lower(),  # as the hub wants it
        "evidence": [" ".join(line.split()) for line in evidence],
        "limits": [" ".join(line.split()) for line in limits],
    }


def card_of(facts: Facts) -> str:
    """Return the card."""
    told, family = _described(facts.settings), facts.model.family or facts.model.model_class
    drawn = draws(facts.model, facts.settings)
    name = told["model"] or subject_name(facts.model, facts.settings)
    title = f"A dsas Steering for {name}"
    about = (
        f"For {name}: {family}, width {facts.model.width}, {facts.model.depth} layers, weights "
        f"`{facts.model.fingerprint}`. {sum(rule.weight > 0 for rule in facts.rules)} sites are steered."
    )
    loads = f'"{told["model"]}"' if told["model"] else "..."
    opened = f"model, tokenizer = dsas.load_model({loads})\n" if facts.model.family else ""  # a pipeline has none
    use = (
        f"```python\nimport dsas  # pip install dsas\n\n{opened}"
        'steering = dsas.Steering.from_pretrained("...")  # this folder, or OWNER/NAME on the hub\n'
        f"{_OF_PIPELINE if drawn else _OF_MODEL}\n```"
    )
    lines = facts.calibration.lines() if facts.calibration is not None else ["not calibrated: 1 by default"]
    settings = told_settings(facts.model, facts.settings)
    made = [f"{key}: {in_words(value)}" for key, value in settings.items() if key != KEY]
    parts = {
        "": [told["what"], about],
        "Use": [use],
        "Strength": [_listed(lines)],
        "Evidence": [_listed(told["evidence"])],
        "Limits": [_listed([*told["limits"], *ALWAYS])],
        "How it was made": [_listed(made), f"```\n{facts.shown}\n```"],
    }
    tags = ", diffusers, text-to-image" if drawn else ""
    front = ["library_name: dsas", f"tags: [dsas, activation-steering{tags}]"]
    front += [f"license: {told['licence']}"] if told["licence"] else []
    front += [f"base_model: {told['model']}"] if told["model"] else []
    texts = [f"# {title}"]
    for heading, paragraphs in parts.items():
        said = [paragraph for paragraph in paragraphs if paragraph]
        texts += ([f"## {heading}"] if heading and said else []) + said
    return "---\n" + "\n".join(front) + "\n---\n" + "\n\n".join(texts) + "\n"


def _described(settings: Mapping[str, Json]) -> JsonObject:
    """Return the description, if a stored Steering has one that can be shown."""
    nothing: JsonObject = {"what": "", "model": "", "licence": "", "evidence": [], "limits": []}
    told = settings.get(KEY)
    if not isinstance(told, Mapping) or not all(isinstance(told.get(key), type(one)) for key, one in nothing.items()):
        return nothing
    fits = {"model": _MODEL, "licence": _LICENCE}
    kept = {key: told[key] if key not in fits or fits[key].fullmatch(told[key]) else "" for key in nothing}
    return kept | {key: [str(line) for line in told[key]] for key in ("evidence", "limits")}


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
