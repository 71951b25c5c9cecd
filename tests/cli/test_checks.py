"""A command says what is wrong with its files, folders, names and options before it imports torch or loads a model."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from make_options import options
from makers import random_steering

from dsas.cli.checks import check_out, check_out_file
from dsas.errors import OptionError
from dsas.testing import tiny_model

PROGRAM = """
import contextlib, io, json, sys
from dsas.cli import main
ended = []
for arguments in json.load(sys.stdin):
    sys.argv, out, err = ["dsas", *arguments], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as status:
            ended.append([status.code, out.getvalue(), err.getvalue()])
heavy = {"torch", "transformers", "numpy", "sklearn"} & set(sys.modules)
print(json.dumps({"ended": ended, "heavy": sorted(heavy)}))
"""
FIT = "fit someone/absent --source rude.txt --control plain.txt --out new"
TRAIN = "train someone/absent --source rude.txt --target plain.txt --out new"
CALIBRATE = "calibrate someone/absent detox --tune rude.txt --held-out plain.txt"
EXPLAIN = "explain someone/absent hello --steering detox"
PORT = "port detox someone/absent --source rude.txt --control plain.txt"
ADOPT = "adopt v.pt --model someone/absent --out new"
IMAGES = "images someone/absent detox --prompt cat"
DRAFT = "draft sings --model someone/absent --out new"
PARETO = "pareto someone/absent --prompts ask.txt --tune rude.txt --neutral plain.txt --out new --steering detox"
FITTED = "--source rude.txt --control kind.txt"
NO_STEERING = "'gone' is neither a local folder nor a readable hub id"

LONG = "x" * 256

CASES = {
    f"{IMAGES} --seed {10**30}": "less than or equal to 1099511627776",
    f"{FIT} --out .".replace("someone/absent", "gone/x/y"): "no model could be loaded from 'gone/x/y'",
    f"{FIT} --out {'d/' * 101}x": "102 nested folders would have to be made",
    f"{EXPLAIN} --out dangling": "expected a file, but it is a broken link",
    f"{EXPLAIN} --out /dev/null": "expected a file, but it is a device or pipe",  # which would be replaced by a file
    f"{EXPLAIN} --out new/../..": "expected a file, but it is a folder",
    f"{FIT} --out {LONG}": "xxx... is too long",
    f"{FIT} --out new/{LONG}/x": "xxx... is too long",
    f"{FIT} --out {LONG[:250]}": "xxx... is too long",  # beside it lies a folder with a longer name
    f"{EXPLAIN} --out {LONG}": "xxx... is too long",
    f"{FIT} --out dangling": "dangling is a link to a path that does not exist",
    f"{FIT} --out dangling/x": "dangling is a link to a path that does not exist",
    f"{EXPLAIN} --out dangling/x.html": "dangling is a link to a path that does not exist",
    f"{EXPLAIN} --strength 1e400": "a strength must be finite, got inf; float32 holds up to 3.4e38",
    "generate someone/absent hello --steering detox --strength 1e39": "a strength must be finite",
    f"{IMAGES} --strength 1e400": "a strength must be finite",
    f"{PARETO} --strength 0.1 --strength inf": "a strength must be finite",
    f"{TRAIN} --start-strength inf": "a strength must be finite",
    "playground someone/absent --steering detox --strength 1e400": "a strength must be finite",
    "playground someone/absent --steering detox --steering ./detox": "two Steerings are called 'detox'",
    f"{PARETO} --steering ./detox": "two Steerings are called 'detox'",
    f"{FIT} --source rud.txt": "rud.txt: no such file; closest in its folder: 'rude.txt'",
    f"{FIT} --source rows.jsonl": "rows.jsonl:1: no field 'text'; closest: 'words'",
    f"{FIT} --template-args [1]": "expected --template-args as a JSON object",
    f"{FIT} --part thought": "parts must be one or several of",
    f"{FIT} --source hub:owner/name": "expected hub:OWNER/NAME:SPLIT",
    f"{TRAIN} --tokens mean": "'mean' is not one of 'auto', 'all', 'answer', 'last', 'last-instruction'",
    f"{CALIBRATE} --template-args {{": "--template-args is not JSON",
    f"{PORT} --template-args []": "expected --template-args as a JSON object",
    f"{EXPLAIN} --template-args 3": "expected --template-args as a JSON object",
    f"{FIT} --transform ca": "unknown transform 'ca'; closest: 'caa'",
    f"{FIT} --regulator logistic*cats": "unknown regulator 'cats'; closest: 'cast'",
    f"{FIT} --out rude.txt": "cannot write to rude.txt: expected a folder, but",
    f"{FIT} --out rude.txt/deeper/still": "rude.txt is a file",
    f"{FIT} --spans --incremental": "--incremental and --spans cannot be combined",
    f"{FIT} --incremental --workers 2": "--incremental and --workers cannot be combined",
    f"{FIT} --spans": "spans are read from a file ending in .jsonl, got '.txt'",
    f"{FIT} --selection best": "'best' is not one of 'threshold', 'smooth', 'top', 'all'",
    f"{FIT} --threshold 2": "Invalid value for '--threshold'",
    f"{FIT} --transfrom caa": "--transform",
    FIT.replace("someone/absent", "./absent"): "no model could be loaded from './absent'",
    FIT.replace("someone/absent", "absent.gguf"): "no model could be loaded from 'absent.gguf'",
    f"{TRAIN} --source rud.txt": "rud.txt: no such file",
    f"{TRAIN} --control gone.txt": "gone.txt: no such file",
    f"{TRAIN} --regulator cats": "unknown regulator 'cats'; closest: 'cast'",
    f"{TRAIN} --out rude.txt/x": "rude.txt is a file",
    f"{TRAIN} --start gone": f"--start must be fitted, scratch or a Steering: {NO_STEERING}",
    f"{TRAIN} --start-strength 0.1": "--start-strength needs a Steering to start from, and --start is 'fitted'",
    f"{TRAIN} --objective e2e": "unknown objective 'e2e'; closest: 'e2e-dsas'",
    TRAIN.replace("--target plain.txt", ""): "--objective lineas needs --source and --target",
    f"{TRAIN} --objective imitate --instruction Sing.": "draws its target from the model itself: remove --target",
    "train someone/absent --out new --objective imitate": '--objective imitate needs --instruction, such as "Answer',
    CALIBRATE.replace("detox", "gone --out new"): NO_STEERING,
    CALIBRATE.replace("detox", "empty"): "empty is not a stored Steering: config.json, model.safetensors not found",
    CALIBRATE.replace("detox", "someone/detox"): "give --out, the folder to write the result to",
    f"{CALIBRATE} --tune wiki=gone.txt": "gone.txt: no such file",
    f"{CALIBRATE} --budget ppl=1.05": "unknown budget 'ppl'; closest: ",
    f"{CALIBRATE} --start 2 --limit 1": "expected 0 < start <= limit, got --start 2.0 and --limit 1.0",
    f"{CALIBRATE} --out rude.txt": "cannot write to rude.txt",
    f"{DRAFT} --questions gone.txt": "gone.txt: no such file",
    f"{DRAFT} --judge toxblock": "no scorer 'toxblock'; closest packaged ones: 'tox-block'",
    f"{DRAFT} --least 3": "Invalid value for '--least'",
    f"{DRAFT} --out rude.txt": "cannot write to rude.txt",
    "new rude.txt sings --model someone/absent": "cannot write to rude.txt",
    "new detached sings --model ./absent": "no model could be loaded from './absent'",
    "new detached sings --model someone/absent --judge yess": "no scorer 'yess'",
    DRAFT.replace("someone/absent", "./absent"): "no model could be loaded from './absent'",
    "generate someone/absent --file gone.txt": "gone.txt: no such file",
    "generate someone/absent hello --steering gone": NO_STEERING,
    "generate someone/absent hello --compare": "--compare needs --steering",
    f"{EXPLAIN} --file rude.txt": "either one prompt or --file",
    EXPLAIN.replace("hello", "--file gone.txt"): "gone.txt: no such file",
    EXPLAIN.replace("detox", "gone"): NO_STEERING,
    f"{EXPLAIN} --strength 0": "expected a strength that is not 0",
    f"{EXPLAIN} --out empty": "cannot write empty: expected a file, but it is a folder",
    f"{EXPLAIN} --out rude.txt/page.html": "rude.txt is a file",
    IMAGES.replace("detox", "gone"): NO_STEERING,
    f"{IMAGES} --options [1]": "--options must be a JSON object",
    f"{IMAGES} --branch all": "'all' is not one of 'conditional', 'unconditional', 'both'",
    f"{IMAGES} --out rude.txt": "cannot write to rude.txt",
    f"{IMAGES} --options {{\"generator\":1}}": "--options must not hold ['generator']",
    f"{IMAGES} --negative fog --options {{\"negative_prompt\":\"x\"}}": "give --negative or 'negative_prompt'",
    f"{IMAGES} --strength 0": "expected a --strength above 0",
    f"{IMAGES} --strength 1 --maps-at 2": "--maps-at must be a strength that is drawn and above 0 (1), got 2",
    f"{IMAGES} --target one --target two": "expected a --target for each of 1 --prompt, got 2",
    IMAGES.replace("someone/absent", "./absent"): "expected a folder with a diffusers pipeline",
    IMAGES.replace("someone/absent", "./empty"): "diffusers pipeline (model_index.json), but ./empty holds none",
    IMAGES.replace("someone/absent", "./detox"): "but ./detox holds a transformers model",
    IMAGES.replace("someone/absent", "./broken"): "broken/model_index.json is not a JSON object",
    FIT.replace("someone/absent", "./drawing") + " --spans --source spans.jsonl": "--spans has no effect on",
    FIT.replace("someone/absent", "./drawing --part text"): "--part has no effect on a pipeline",
    FIT.replace("someone/absent", "./drawing") + " --options [1]": "--options must be a JSON object",
    FIT.replace("someone/absent", "./detox") + " --negative fog": "--negative has no effect on a language model",
    "generate ./drawing hello": "'./drawing' holds a diffusers pipeline, not a transformers model",
    "doctor ./absent": "no model could be loaded from './absent'",
    "doctor painter": "'painter' holds a diffusers pipeline, not a transformers model: `dsas fit` and",
    "port detox painter --source rude.txt --control plain.txt": "'painter' holds a diffusers pipeline",
    f"{PORT} --control gone.txt": "gone.txt: no such file",
    PORT.replace("detox", "gone"): NO_STEERING,
    f"{PORT} --tune plain.txt": "calibrated with --tune and --held-out together: give both, or neither",
    f"{PORT} --out rude.txt": "cannot write to rude.txt",
    f"{ADOPT} --source gone.txt --control plain.txt": "gone.txt: no such file",
    ADOPT: "--source and --control are needed with --regulator auto",
    f"{ADOPT} --regulator constant --source rude.txt": "--source and --control are not read with --regulator constant",
    f"{ADOPT} --regulator constant --out rude.txt": "cannot write to rude.txt",
    f"{ADOPT} --regulator cats --source rude.txt --control plain.txt": "unknown regulator 'cats'; closest: 'cast'",
    "export gone --gguf v.gguf": NO_STEERING,
    "export detox --gguf empty": "--gguf: expected a file in a folder that exists, got 'empty'",
    "export detox --gguf v.gguf --mean-gain rude.txt": "--mean-gain and --merged need --model",
    "export detox": "give either --gguf FILE or --merged FOLDER",
    "export detox --merged new": "--mean-gain and --merged need --model",
    "export detox --merged new --model model --mean-gain rude.txt": "--mean-gain cannot be combined with --merged",
    "selectivity gone --model someone/absent --source gone.txt --control rude.txt": "gone.txt: no such file",
    "selectivity detox --model someone/absent --source rude.txt --control few.txt": "got 3 from --control few=...",
    "fires-on gone --model someone/absent --texts gone.txt": "gone.txt: no such file",
    "inspect-data --source rude.txt --control gone.txt --model someone/absent": "gone.txt: no such file",
    "inspect-data --source rude.txt --control plain.txt --model ./absent": "no model could be loaded from './absent'",
    f"{PARETO} --prompts gone.txt": "gone.txt: no such file",
    f"{PARETO} --neutral gone.txt": "gone.txt: no such file",
    f"{PARETO} --questions gone.jsonl": "'gone.jsonl' does not exist",
    f"{PARETO} --steering gone": NO_STEERING,
    f"{PARETO} --transform ca": "unknown transform 'ca'",
    f"{PARETO} --held-out-source gone.txt": "gone.txt: no such file",
    f"{PARETO} --held-out-source few.txt": "needs at least 4 texts of each kind, got 3 from --held-out-source",
    f"{PARETO} --held-out-source ask.txt": "texts are in both --held-out-source and --prompts",
    f"{PARETO} --scorer toxblock": "no scorer 'toxblock'; closest packaged ones: 'tox-block'",
    f"{PARETO} --out rude.txt": "cannot write to rude.txt",
    f"{PARETO} --judge ./absent": "no model could be loaded from './absent'",
    f"{PARETO} --source kind.txt": "give --source and --control to fit on",
    f"{PARETO} {FITTED}": "texts are in both the texts to fit on and --tune",
    PARETO.replace("--steering detox", ""): "or --steering with a fitted Steering",
    "playground someone/absent --steering gone": NO_STEERING,
    "playground someone/absent --steering detox --strength 0": "expected a strength that is not 0",
    "serve someone/absent --steering other=gone": NO_STEERING,
    "serve --port 8000 ./model --steering detox": "the model comes first",
    "demo --out rude.txt": "cannot write to rude.txt",
    "demo --model gpt5": "'gpt5' is not one of 'smollm2', 'gemma3'",
    "check gone --model someone/absent": NO_STEERING,
    "check detox": "expected a Steering and --model, or --list alone",
    "check detox --model ./absent": "no model could be loaded from './absent'",
    "check detox --model someone/absent --limits gone.json": "gone.json: no such file of limits",
    "check detox --model someone/absent --limits rude.txt": "rude.txt: not JSON",
    "check detox --model someone/absent --harmful gone.txt": "gone.txt: no such file",
    "info gone": NO_STEERING,
    "lm-eval run --model dsas --model_args pretrained=someone/absent,steering=gone": NO_STEERING,
    "methods --jsn": "--json",
    "serv": "serve",
}  # fmt: skip


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checks")
    for name in ("rude", "plain", "kind", "ask"):
        (made / f"{name}.txt").write_text("\n".join(f"{name} {n}" for n in range(8)))
    (made / "few.txt").write_text("one\ntwo\nthree")
    (made / "rows.jsonl").write_text('{"words": "one"}')
    (made / "spans.jsonl").write_text("".join(f'{{"text": "rude {n}", "spans": [[0, 4]]}}\n' for n in range(8)))
    for name, index in (("drawing", '{"_class_name": "StableDiffusionPipeline"}'), ("broken", "{")):
        (made / name).mkdir()
        (made / name / "model_index.json").write_text(index)
    (made / "empty").mkdir()
    (made / "dangling").symlink_to("gone")
    (made / "painter").mkdir()
    (made / "painter" / "model_index.json").write_text("{}")
    random_steering(tiny_model()).save_pretrained(made / "detox")
    return made


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    """Run all cases in one process, which must not import what computes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps([case.split() for case in CASES]),
        capture_output=True, text=True, check=True, cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_ends_with_status_2_and_one_line_that_says_what_it_is(told: dict[str, Any], case: str) -> None:
    status, out, err = told["ended"][list(CASES).index(case)]
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert CASES[case] in err


def test_no_mistake_costs_the_time_of_importing_torch(told: dict[str, Any]) -> None:
    assert told["heavy"] == []


def test_every_command_has_a_mistake_that_is_told_early() -> None:
    assert {case.split()[0] for case in CASES} >= set(options())


def test_nothing_was_written(told: dict[str, Any], folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        *("rude.txt", "plain.txt", "kind.txt", "ask.txt", "few.txt", "rows.jsonl", "spans.jsonl"),
        *("empty", "detox", "dangling", "drawing", "broken", "painter"),
    }


def test_a_folder_without_permission_is_told_and_one_that_can_be_made_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_out(tmp_path / "new" / "deeper")
    denied: Callable[[Any, int], bool] = lambda path, _mode: Path(path) != tmp_path  # noqa: E731
    monkeypatch.setattr(os, "access", denied)
    with pytest.raises(OptionError, match=rf"cannot write to .*deeper: no permission to write in {tmp_path}$"):
        check_out(tmp_path / "new" / "deeper")


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OptionError, match=rf"cannot write to .*new: No space left on device in {tmp_path}$"):
        check_out(tmp_path / "new")
    with pytest.raises(OptionError, match=rf"cannot write to {tmp_path}: No space left on device in {tmp_path}$"):
        check_out_file(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("file", "where"), [([], ""), (["out/x"], ": out/x")])
def test_a_disk_that_is_full_once_all_is_done_ends_with_one_line(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch, file: list[str], where: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", *file)

    monkeypatch.setattr("dsas.cli.fitting.show", full)
    done = run("info", folder / "detox")
    said = f"error: No space left on device{where}; rerun the same command to resume\n"
    assert done == (2, "", said)


def test_a_classifier_that_is_a_folder_is_a_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsas.cli.checks import check_scorers

    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    check_scorers(["mine", "mine@toxic", "owner/name", "owner/name@toxic", "tox-block"])
    with pytest.raises(OptionError, match="no scorer 'others@toxic'"):
        check_scorers(["others@toxic"])
