"""Subject words: "prompts", "positions" and "pictures" for Steerings of pipelines, "texts" for language models."""

from collections.abc import Mapping

from dsas.files.json_values import Json, JsonObject
from dsas.model.identity import ModelIdentity
from dsas.model.pipeline_modules import PIPELINE_FAMILIES


def draws(model: ModelIdentity, settings: Mapping[str, Json]) -> bool:
    """Whether a Steering was made for a pipeline that draws pictures, and not for a language model."""
    reading = settings.get("reading")
    known = model.model_class in PIPELINE_FAMILIES or (isinstance(reading, dict) and "steps" in reading)
    return not model.family and known


def subject_name(model: ModelIdentity, settings: Mapping[str, Json]) -> str:
    """Return what a Steering is for: the class of the model, or a pipeline and the class of its denoiser."""
    return f"a diffusers pipeline with {model.model_class}" if draws(model, settings) else model.model_class


def told_settings(model: ModelIdentity, settings: Mapping[str, Json]) -> JsonObject:
    """Return settings for display: a pipeline was fitted on prompts, and on pictures or their positions."""
    if not draws(model, settings):
        return dict(settings)
    reading = settings.get("reading")
    positions = isinstance(reading, dict) and reading.get("pooling") == "position"
    words: JsonObject = {"examples": "prompts", "labels": "positions" if positions else "pictures"}
    return {"prompts" if key == "texts" else key: words.get(key, value) for key, value in settings.items()}


def in_words(value: Json) -> str:
    """Return a JSON value for people: "source 24, control 48" for an object, yes and no for truth values."""
    if isinstance(value, dict):
        parts = {key: f"({in_words(one)})" if isinstance(one, dict) else in_words(one) for key, one in value.items()}
        return ", ".join(f"{key} {part}" for key, part in parts.items()) or "none"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_words, value))}]"
    if isinstance(value, str):
        return value if value.isprintable() else value.encode("unicode_escape").decode()
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)
