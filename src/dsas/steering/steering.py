"""Steering: which rule holds at which site, on which model; what fit returns, apply uses and storage keeps."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from dsas.errors import ArtifactError, OptionError, SiteError
from dsas.files.json_values import Json, JsonObject
from dsas.model.examples import Given
from dsas.model.foreign import Model, Tokenizer
from dsas.model.identity import ModelIdentity
from dsas.model.pipeline_modules import Branch
from dsas.model.reading import Reading
from dsas.model.strength import PromptTokens, Strength
from dsas.model.subject import Subject, subject_of
from dsas.regulators.base import Regulator
from dsas.regulators.product import times
from dsas.runtime.applied import Applied, ApplyOptions, Record
from dsas.runtime.fuse import Fusion
from dsas.runtime.rule import Rule, weighted
from dsas.runtime.scope import Scope
from dsas.runtime.site_report import FittedSite, fitted_report
from dsas.steering.artifact import Artifact, read_artifact, write_artifact
from dsas.steering.calibration_record import Calibration
from dsas.steering.card import KEY, Facts, card_of, description
from dsas.steering.composition import Composition, compose, scaled, summed
from dsas.steering.folder import CONFIG, TENSORS, readable, steering_folder
from dsas.steering.hub import OnHub, check_used
from dsas.steering.porting import Asked, Ported, placed, port, verdict_of
from dsas.steering.serialization import pack
from dsas.steering.stored_fields import check_config, rules_of
from dsas.steering.subject_words import subject_name
from dsas.version import VERSION


class Steering(OnHub):
    """Maps sites of one model to (transform, regulator) rules.

    rules: in the order of the model. model: identity of the model it was fitted on. settings: JSON-ready facts about
    how it was made, stored and shown but never acted on. calibration: the strength that `dsas.calibrate` found for it.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        model: ModelIdentity,
        settings: Mapping[str, Json] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.rules = tuple(rules)
        self.model = model
        self.settings = dict(settings or {})
        self.calibration = calibration
        sites = [rule.site for rule in self.rules]
        if not sites or len(set(sites)) < len(sites):
            raise OptionError(
                f"a Steering needs at least one rule and one rule per site, got sites {list(map(str, sites))}"
            )

    @property
    def strength(self) -> float | None:
        """The calibrated strength, > 0; None when there is none."""
        return None if self.calibration is None else self.calibration.strength

    @property
    def default_strength(self) -> float:
        """The strength at which it is applied when none is given: the calibrated one, or 1."""
        return self.strength or 1.0

    def calibrated(self, calibration: Calibration) -> "Steering":
        """Return this Steering with the strength (and weights, if calibrated) that were found for it.

        Raises OptionError when they were found for another one.
        """
        steering = Steering(weighted(self.rules, calibration.weights or {}), self.model, self.settings, calibration)
        if steering.digest() != calibration.steering:
            raise OptionError("this calibration was computed for another Steering: run dsas.calibrate on this one")
        return steering

    def apply(
        self,
        model: Model,
        strength: Strength | None = None,
        *,
        record: Record = True,
        skip_sinks: bool = False,
        prompt_tokens: PromptTokens = None,
        branch: Branch = "conditional",
        scope: Scope = "process",
    ) -> Applied:
        """Return a context manager inside which `model`, a torch module or a diffusers pipeline, is steered.

        `apply(...).install()` steers until `.remove()` is called on its result. The Steering itself never changes.

        strength: one number, or one per row of every batch (row i of k * n rows takes entry i // k, the order in which
        generate() lays out beams). 0 is the unsteered model to the bit, above 1 is allowed, and below 0 is the opposite
        direction where the transform has one (additions and affine maps). When not given, the calibrated strength, or 1
        without one.
        record: whether to keep the applied strengths of the last sequence for `trace` and `report` of the result (small
        tensors only); "doses" also keeps the regulator alone and the relative dose, which needs the norms of every
        activation.
        skip_sinks: whether to spare the first real token of each row.
        prompt_tokens: how many real tokens the prompt has, one number or one per row, for regulators that need it. When
        not given, the prompt is that of `generate()`; in a loop of your own, it is what comes before the first pass of
        one token over a cache, and a later pass of several tokens begins the prompt of a new turn.
        branch: which branch of classifier-free guidance is steered, in a pipeline or in `generate(guidance_scale=...)`:
        "conditional" (the prompt's), "unconditional" (the negative prompt's) or "both"; without guidance
        everything is conditional.
        scope: "process" steers every pass of the model in any thread; "context" only those of the thread or asyncio
        task that applies it, so that several can steer one model differently at once.
        Raises StrengthError, ModelMismatchError, SiteError, OptionError; warns when the weights are not those it was
        fitted on, saying what differs, and once when a cache is continued that was filled without this Steering or at
        another strength.
        """
        subject = subject_of(model)
        rules = self.rules_on(subject)
        options = ApplyOptions(record, skip_sinks, prompt_tokens, branch, scope)
        return Applied(rules, subject, self.default_strength if strength is None else strength, options)

    def fuse(self, model: Model, strength: Strength | None = None, *, branch: Branch = "conditional") -> Fusion:
        """Make this Steering part of `model` at one strength, until `.undo()` or the end of a `with` block.

        strength: one number, `default_strength` unless given.
        branch: as in `apply`. A fused Steering steers all rows, so a pipeline accepts only "both"; a language model
        steers both in `generate(guidance_scale=...)` in any case. A constant regulator's affine map goes into the
        weights of the linear layers at its site, where that is exact up to one rounding of the weights, and then costs
        nothing; every other site's module steers by itself. `.report()` says which is which, and why. Nothing is
        recorded. A state dict has what is in the weights only.
        Raises StrengthError unless given one number, OptionError for regulators that read token positions or a branch
        of a pipeline, and as `apply`.
        """
        subject = subject_of(model)
        rules = self.rules_on(subject)
        subject.check_fusing([rule.site for rule in rules if rule.weight > 0], branch)
        return Fusion(rules, subject.module, self.default_strength if strength is None else strength)

    def port(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        source: Sequence[Given],
        control: Sequence[Given],
        least: float = 0.75,
        reading: Reading | None = None,
    ) -> Ported:
        """Return whether the regulators still tell source from control on a relative of the model, in one pass.

        source, control: as in `dsas.fit`, at least 4 each, preferably not those it was fitted on. least: AUROC in [0,
        1] from which a site holds. reading: for batch_size and max_tokens; the default when not given. The result has a
        verdict, a line per steered site, and the Steering with its weights on this model.
        Raises TextsError, OptionError, ModelMismatchError.
        """
        subject = subject_of(model, tokenizer)
        rules, found, differences = port(self.rules, self.model, subject, Asked(source, control, least, reading))
        settings = {**self.settings, "ported from": self.model.as_dict()}
        return Ported(verdict_of(found), found, differences, Steering(rules, subject.identity, settings))

    def within(self, regulator: Regulator) -> "Steering":
        """Return this Steering, not calibrated, with every regulator multiplied by another, such as `dsas.Turns`."""
        rules = [rule._replace(regulator=times(rule.regulator, regulator)) for rule in self.rules]
        return Steering(rules, self.model, self.settings)

    def __or__(self, other: "Steering | Composition") -> Composition:
        return compose(self, other)

    def __add__(self, other: "Steering") -> "Steering":
        """Return one Steering, not calibrated, that adds both vectors. Raises OptionError where that is not exact."""
        if self.model != other.model:
            raise OptionError("Steerings of different models cannot be added: fit both on the same model")
        return Steering(summed(self.rules, other.rules), self.model, {"sum of": [self.settings, other.settings]})

    def __mul__(self, factor: float) -> "Steering":
        """Return a Steering, not calibrated, with multiplied vectors. Raises OptionError where that is not exact."""
        return Steering(scaled(self.rules, factor), self.model, {**self.settings, "multiplied by": factor})

    __rmul__ = __mul__

    def report(self) -> list[FittedSite]:
        """Return one line per site: accuracy, weight, whether it is steered and why not. It never changes.

        What happened while the Steering was applied is `Applied.report`.
        """
        return fitted_report(self.rules)

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **hub_options: Any
    ) -> str | None:
        """Write config.json, model.safetensors and a README card into a folder, all or nothing.

        With push_to_hub, upload it as well (repo_id defaults to the folder's name) and return the commit's address;
        `hub_options` are those of `push_to_hub`. Raises OptionError for options without it, and as `push_to_hub`.
        """
        check_used(push_to_hub, repo_id=repo_id, **hub_options)
        write_artifact(save_directory, self._artifact(), card=self.card())
        return self.push_to_hub(repo_id or Path(save_directory).absolute().name, **hub_options) if push_to_hub else None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **hub_options: Any
    ) -> "Steering":
        """Load a Steering from a local folder or a hub id; `hub_options` as `huggingface_hub.snapshot_download`.

        Raises ArtifactError, saying which file and why, for anything that is not an intact Steering.
        """
        folder = steering_folder(pretrained_model_name_or_path, revision=revision, hub_options=hub_options)
        with readable(folder):
            artifact = read_artifact(folder)
        return cls._from_artifact(artifact, folder)

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change whenever what this Steering does to a model would change.

        The calibrated strength is not part of it: digest and strength together say what is done.
        """
        artifact = self._artifact()
        digest = hashlib.sha256(json.dumps(artifact.config["rules"], sort_keys=True).encode())
        for name, value in sorted(artifact.tensors.items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def described(
        self, what: str, *, model: str = "", licence: str = "", evidence: Sequence[str] = (), limits: Sequence[str] = ()
    ) -> "Steering":
        """Return the same Steering with a description for its card; what it does to a model is unchanged.

        what: what it does, in a sentence. model: OWNER/NAME on the hub. licence: by its short name, such as apache-2.0.
        evidence, limits: a sentence each. Raises OptionError for an invalid model or licence.
        """
        told = description(what, model, licence, evidence, limits)
        return Steering(self.rules, self.model, {**self.settings, KEY: told}, self.calibration)

    def card(self) -> str:
        """Return the README card that is stored beside the tensors (Markdown with the hub's front matter)."""
        return card_of(Facts(self.model, self.rules, self.settings, self.calibration, repr(self)))

    def __repr__(self) -> str:
        steered = sum(rule.weight > 0 for rule in self.rules)
        head = f"Steering for {subject_name(self.model, self.settings)}: {steered} of {len(self.rules)} sites steered"
        if self.strength is not None:
            head += f", calibrated strength {self.strength:.4g}"
        lines = []
        for said, alike in groupby(self.rules, key=_said):
            first, *others = (str(rule.site) for rule in alike)
            span = f"{first} to {others[-1]} ({1 + len(others)} sites)" if others else first
            lines.append(f"  {span} -> {said}")
        return "\n".join([head, *lines])

    def rules_on(self, subject: Subject) -> list[Rule]:
        """Return the rules at the sites' paths in a subject, which differ if it is wrapped or part of another.

        Raises ModelMismatchError; warns, saying what differs, of weights that are not those it was fitted on.
        """
        return placed(self.rules, self.model, subject)

    def _artifact(self) -> Artifact:
        tensors: dict[str, Tensor] = {}
        rules = []
        for number, rule in enumerate(self.rules):
            line: JsonObject = {"site": asdict(rule.site)}
            if rule.site.layout == "tokens":  # omitted, so that older digests stay valid
                del line["site"]["layout"]
            for part, method in (("transform", rule.transform), ("regulator", rule.regulator)):
                line[part] = pack(method, f"{number}.{part}", tensors)
            rules.append(line | {"weight": rule.weight, "accuracy": rule.accuracy})
        config = {"dsas_version": VERSION, "model": self.model.as_dict(), "settings": self.settings, "rules": rules}
        if self.calibration is not None:
            config["calibration"] = self.calibration.as_dict()
        return Artifact(config, tensors)

    @classmethod
    def _from_artifact(cls, artifact: Artifact, folder: Path) -> "Steering":
        config, tensors = artifact
        try:
            check_config(config)
            rules, stored = rules_of(config["rules"], tensors), config.get("calibration")
            calibration = None if stored is None else Calibration.from_dict(stored)
            steering = cls(rules, ModelIdentity(**config["model"]), config["settings"], calibration)
            unused = sorted(set(tensors) - set(steering._artifact().tensors))
            if unused:
                raise ArtifactError(f"{TENSORS} holds tensors that belong to no rule: {', '.join(unused):.80}")
            if calibration is not None and calibration.steering != steering.digest():
                raise ArtifactError("its calibration was computed for another Steering; calibrate this one")
        except (ArtifactError, OptionError, SiteError, KeyError) as error:
            raise ArtifactError(f"{folder / CONFIG}: {error}") from error
        return steering


def _said(rule: Rule) -> str:
    """Return what a rule does, without its site."""
    weight = f", weight {rule.weight:.2f}" if rule.weight != 1 else ""
    accuracy = f", accuracy {rule.accuracy:.2f}" if rule.accuracy is not None else ""
    return f"{rule.transform!r} x {rule.regulator!r}{weight}{accuracy}"
