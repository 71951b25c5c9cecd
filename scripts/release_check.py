"""What must hold before a release: the packages build, have correct metadata, and work without anything else installed.

    python scripts/release_check.py [--keep]

Builds sdist and wheel, checks their metadata, installs the wheel without any extra into a fresh environment (torch
first, from the same pin as everywhere), and there: imports, runs `dsas --help` and `dsas methods`, fits, applies,
stores and loads a Steering on a model made in code, and tries a feature of every extra, which must fail with the
command that installs it. Exit status 1 names what failed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FIRST_MINUTE = """
import tempfile
import dsas
from dsas.testing import tiny_model, tiny_tokenizer

model, tokenizer = tiny_model(), tiny_tokenizer()
rude, plain, polite = ([f"{start} {n}" for n in range(6)] for start in ("SHUT UP", "the door", "thank you"))
steering = dsas.fit(model, tokenizer, source=rude, control=plain, target=polite, progress=False)
with steering.apply(model, 1.0) as applied:
    model.generate(**tokenizer("SHUT UP", return_tensors="pt"), max_new_tokens=3, pad_token_id=0)
assert applied.trace().strengths.shape[1] == 1
with tempfile.TemporaryDirectory() as folder:
    steering.save_pretrained(folder)
    assert dsas.Steering.from_pretrained(folder).digest() == steering.digest()
print("fitted, applied, stored and loaded by dsas", dsas.__version__)
"""

# One call that needs each extra: run without it, it must name it.
NEEDS = {
    "accelerate": "dsas.load_model('.', device='balanced')",
    "demo": "from dsas.demo.models import real_model; real_model('smollm2', cache=Path('.'))",
    "diffusion": "from dsas.testing import tiny_pipeline; tiny_pipeline('sd')",
    "gguf": "dsas.read_vectors('empty.gguf')",
    "hub": "from dsas.files.data_sets import read_rows; read_rows('hub:a/b:train')",
    "lm-eval": "from dsas.evaluation.harness import steered_class; steered_class()",
    "playground": "from dsas.demo.playground import playground; playground(model, tokenizer, {'a': steering})",
    "ray": "from dsas.parallel.workers import workers_of; workers_of(dict, dsas.Spread(ray='auto'))",
    "reports": "dsas.explain(model, tokenizer, steering, 'SHUT UP', strength=1.0).frame()",
    "tensorboard": "dsas.train(model, tokenizer, source=rude, target=polite, checkpoint='log', steps=1, "
    "running=dsas.Running(tensorboard=True, progress=False))",
    "vllm": "from dsas.serving.engine import require_vllm; require_vllm()",
}
NEVER_ASKED_FOR = {"dev", "docs", "inspect"}  # tools of a checkout; Inspect imports dsas, not dsas Inspect


def main() -> None:
    """Build, look, install, try."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="keep what was built in dist/")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        ran([sys.executable, "-m", "build", "--outdir", work / "dist", ROOT], "building sdist and wheel")
        (sdist,), (wheel,) = (work / "dist").glob("*.tar.gz"), (work / "dist").glob("*.whl")
        check_metadata(wheel)
        check_contents(sdist, wheel)
        try_wheel(work, wheel)
        if keep:
            shutil.copytree(work / "dist", ROOT / "dist", dirs_exist_ok=True)
    print("release-check: all is well")


def check_metadata(wheel: Path) -> None:
    """Compare the wheel's metadata with pyproject.toml, and require the fields that a package index shows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        said = HeaderParser().parsestr(archive.read(name).decode())
    require(said["Name"] == project["name"], f"the wheel is called {said['Name']}")
    require(said["Version"] == project["version"], f"the wheel has version {said['Version']}")
    require(said["License-Expression"] == project["license"], f"the licence is {said['License-Expression']}")
    require(said["Description-Content-Type"] == "text/markdown", "the README is not declared as Markdown")
    extras = set(said.get_all("Provides-Extra") or [])
    require(extras == set(project["optional-dependencies"]), "the extras differ")
    require(extras == {*NEEDS, *NEVER_ASKED_FOR}, f"nothing is tried of {extras - {*NEEDS, *NEVER_ASKED_FOR}}")
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    require(cited is not None and cited[1] == project["version"], "CITATION.cff has another version")
    top = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    print(f"metadata: {said['Name']} {said['Version']}; the changelog begins with {top[1] if top else 'nothing'}")


def check_contents(sdist: Path, wheel: Path) -> None:
    """Require the files that must be in the packages, and none of those that must not."""
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.namelist()
    require("dsas/py.typed" in packed, "the wheel lacks py.typed")
    require(any(name.endswith("licenses/LICENSE") for name in packed), "the wheel lacks its licence")
    require(all(name.startswith("dsas") for name in packed), "the wheel holds something beside dsas")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "src/dsas/__init__.py"]
    require(all(name in files for name in wanted), f"the sdist lacks one of {wanted}")
    print(f"contents: {len(packed)} files in the wheel, {len(files)} in the sdist")


def try_wheel(work: Path, wheel: Path) -> None:
    """Install the wheel alone and use it, outside the checkout."""
    place = work / "fresh"
    venv.create(place, with_pip=True)
    python, pip = place / "bin" / "python", [place / "bin" / "pip", "install", "-q", "--disable-pip-version-check"]
    constraints = ROOT / "constraints.txt"
    (torch,) = re.findall(r"^torch==.*$", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    ran([*pip, torch], "installing torch")
    ran([*pip, "-c", constraints, wheel], "installing the wheel without extras")
    ran([python, "-c", "import dsas; dsas.fit, dsas.Steering, dsas.train"], "importing", work)
    for command in (["--help"], ["methods"], ["fit", "--help"]):
        ran([place / "bin" / "dsas", *command], f"dsas {' '.join(command)}", work)
    print(ran([python, "-W", "ignore", "-c", FIRST_MINUTE], "the first minute", work).strip())
    for extra, call in NEEDS.items():
        (work / "empty.gguf").touch()
        program = FIRST_MINUTE + "from pathlib import Path\n"
        program += f"try:\n    {call}\nexcept dsas.MissingExtraError as error:\n    print(error)\n"
        said = ran([python, "-W", "ignore", "-c", program], f"asking for the extra {extra}", work).splitlines()[-1]
        require(f"dsas[{extra}]" in said, f"without the extra {extra} it is said: {said}")
        print(f"without {extra}: {said}")


def ran(command: Sequence[str | Path], what: str, where: Path = ROOT) -> str:
    """Run a command and return what it printed; exit with its output when it fails."""
    done = subprocess.run([str(part) for part in command], cwd=where, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"{what} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def require(holds: bool, problem: str) -> None:
    """Exit with the problem, unless the condition holds."""
    if not holds:
        sys.exit(f"release-check: {problem}")


if __name__ == "__main__":
    main()
