"""The public surface: the names, the first minute of a user, and what `import dsas` does not load."""

import inspect
import pickle
import pkgutil
import pydoc
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import dsas
from dsas import errors
from dsas.testing import tiny_model, tiny_tokenizer

NAMES = [
    "Ablation",
    "ActivationError",
    "Addition",
    "All",
    "Applied",
    "ArtifactError",
    "Budget",
    "Calibration",
    "Cast",
    "Chat",
    "ClassifierAddition",
    "Clean",
    "Composition",
    "Constant",
    "Conversation",
    "Custom",
    "Draft",
    "Drawing",
    "DsasError",
    "DsasWarning",
    "E2E",
    "Evidence",
    "Example",
    "Facts",
    "FittedRegulator",
    "ForwardPass",
    "GaussianTransport",
    "Gradient",
    "Guard",
    "HalfSpace",
    "Held",
    "HeldOut",
    "Imitate",
    "LearnedParts",
    "Learner",
    "LinEAS",
    "LinearTransport",
    "Lineas",
    "Located",
    "Logistic",
    "Maps",
    "MeanTransport",
    "Mera",
    "MissingExtraError",
    "ModelMismatchError",
    "OBJECTIVES",
    "Objective",
    "Optimiser",
    "OptionError",
    "PairedMap",
    "PerStep",
    "Posterior",
    "Preference",
    "PrincipalAddition",
    "Probe",
    "Product",
    "Prompts",
    "REGULATORS",
    "Reading",
    "Rectified",
    "Regulator",
    "Reservoir",
    "Rotation",
    "Rule",
    "Running",
    "Schedule",
    "Selection",
    "Site",
    "SiteError",
    "Smooth",
    "Spread",
    "StateError",
    "Steering",
    "StrengthError",
    "TRANSFORMS",
    "TextsError",
    "Threshold",
    "Top",
    "Trace",
    "TrainingTask",
    "Transform",
    "Translation",
    "Turns",
    "WorkerError",
    "__version__",
    "adopt",
    "calibrate",
    "draft",
    "explain",
    "find_sites",
    "fit",
    "general_texts",
    "installed",
    "load_model",
    "read_vectors",
    "remove_all",
    "train",
    "unsteered",
    "write_gguf",
]


def test_the_public_names_are_exactly_these_and_all_are_there() -> None:
    assert dsas.__all__ == NAMES
    assert all(hasattr(dsas, name) for name in NAMES)


def test_the_first_minute_of_a_user_works_as_it_is_promised(tmp_path: Path) -> None:
    model, tokenizer, prompt = tiny_model(), tiny_tokenizer(), "a prompt"
    toxic, neutral, polite = ([f"{start} {n}" for n in range(6)] for start in ("SHUT UP", "the door", "thank you"))

    steering = dsas.fit(model, tokenizer, source=toxic, control=neutral, target=polite, transform="caa")
    with steering.apply(model, strength=1.0) as applied:
        output = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=3, pad_token_id=0)  # type: ignore
    trace = applied.trace()
    steering.save_pretrained(tmp_path / "detox")
    again = dsas.Steering.from_pretrained(tmp_path / "detox")

    assert output.shape == (1, len(prompt) + 3)
    assert trace.strengths.shape == (len(trace.sites), 1, len(prompt) + 2)
    assert trace.token_ids is not None
    assert torch.equal(trace.token_ids, output[:, :-1])
    assert again.digest() == steering.digest()


def loaded_by(program: str) -> set[str]:
    """Return the packages that a Python process has imported at the end of a program."""
    program += "; import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"diffusers", "sklearn", "scipy", "pandas", "matplotlib", "transformers", "typer", "tokenizers", "pygments"}


def test_importing_dsas_loads_no_torch_and_using_it_loads_nothing_heavier() -> None:
    assert not {"torch", "numpy", *HEAVY} & loaded_by("import dsas")
    used = loaded_by("import dsas; dsas.fit")
    assert "torch" in used
    others = {"pygments"} if version("huggingface-hub").startswith("1.") else set()  # imports httpx, which imports it
    assert not (HEAVY - others) & used


def test_a_public_name_is_the_same_object_however_it_is_imported() -> None:
    everything: dict[str, object] = {}
    exec("from dsas import *", everything)
    assert {name: everything[name] for name in NAMES} == {name: getattr(dsas, name) for name in NAMES}
    assert set(NAMES) <= set(dir(dsas))
    assert pickle.loads(pickle.dumps(dsas.Steering)) is dsas.Steering


def test_the_first_use_may_be_a_star_import_or_a_room_of_the_package() -> None:
    assert "torch" in loaded_by("from dsas import *; fit, Steering, OptionError")
    assert "torch" in loaded_by("import dsas; dsas.errors.OptionError; dsas.fitting")


def test_help_describes_the_public_functions() -> None:
    assert "Fit a Steering for `model`" in pydoc.plain(pydoc.render_doc(dsas))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dsas' has no attribute 'fitt'"):
        _ = dsas.fitt  # type: ignore


def test_every_error_is_public() -> None:
    kinds = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == "dsas.errors"}
    assert len(kinds) > 10
    assert kinds <= set(dsas.__all__)


def test_no_public_function_shares_its_name_with_a_module() -> None:
    modules = {module.name for module in pkgutil.walk_packages(dsas.__path__, "dsas.", onerror=lambda _: None)}
    assert "dsas.cli.fitting" in modules
    functions = {name for name in dsas.__all__ if inspect.isfunction(getattr(dsas, name))}
    assert {"fit", "train", "explain", "calibrate"} <= functions
    assert [module for module in modules if module.rpartition(".")[2] in functions] == []
