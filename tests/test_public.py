"""The public surface: the names, the first minute of a user, and what `import dsas` does not load."""

import subprocess
import sys
from pathlib import Path

import torch

import dsas
from dsas.testing import tiny_model, tiny_tokenizer

NAMES = [
    "REGULATORS",
    "TRANSFORMS",
    "Ablation",
    "Addition",
    "Applied",
    "Budget",
    "Calibration",
    "Cast",
    "ClassifierAddition",
    "Composition",
    "Constant",
    "Custom",
    "Drawing",
    "DsasError",
    "DsasWarning",
    "GaussianTransport",
    "HalfSpace",
    "HeldOut",
    "LinearTransport",
    "Lineas",
    "Logistic",
    "Maps",
    "MeanTransport",
    "Mera",
    "Optimiser",
    "PerStep",
    "Posterior",
    "PrincipalAddition",
    "Product",
    "Reading",
    "Rectified",
    "Regulator",
    "Rotation",
    "Rule",
    "Schedule",
    "Site",
    "Spread",
    "Steering",
    "Trace",
    "Transform",
    "__version__",
    "calibrate",
    "explain",
    "find_sites",
    "fit",
    "train",
]


def test_the_public_names_are_exactly_these_and_all_are_there() -> None:
    assert dsas.__all__ == NAMES
    assert all(hasattr(dsas, name) for name in NAMES)


def test_the_first_minute_of_a_user_works_as_design_md_writes_it(tmp_path: Path) -> None:
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


def test_importing_dsas_loads_nothing_heavier_than_torch() -> None:
    program = "import sys, dsas; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"diffusers", "sklearn", "scipy", "pandas", "matplotlib", "transformers", "typer", "tokenizers", "pygments"}
    assert heavy & set(done.stdout.split()) == set()
