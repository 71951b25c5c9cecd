"""The command line, driven as a user drives it: arguments in; exit status, output and files out."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dsas
from dsas.testing import tiny_model, tiny_tokenizer

SETS = {
    "rude": [f"shut up {n}" for n in range(8)],
    "plain": [f"the door {n}" for n in range(8)],
    "kind": [f"thank you {n}" for n in range(8)],
}


Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tiny model and its tokenizer, and three files of texts in three formats."""
    tiny_model(layers=2).save_pretrained(tmp_path / "model")  # pyright: ignore[reportAttributeAccessIssue]
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rude.txt").write_text("\n".join(SETS["rude"]))
    (tmp_path / "plain.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in SETS["plain"]))
    (tmp_path / "kind.csv").write_text("\n".join(["text,label", *(f'"{text}",1' for text in SETS["kind"])]))
    return tmp_path


def fit_arguments(folder: Path) -> list[Any]:
    files = {"--source": "rude.txt", "--control": "plain.jsonl", "--target": "kind.csv"}
    return ["fit", folder / "model", *(x for o, f in files.items() for x in (o, folder / f)), "--out", folder / "kind"]


def test_the_methods_are_listed_with_formula_and_paper(run: Run) -> None:
    rows = json.loads(run("methods", "--json").out)
    assert [row["name"] for row in rows] == [*dsas.TRANSFORMS, *dsas.REGULATORS]
    shown = run("methods").out
    assert all(name in shown for name in dsas.TRANSFORMS)


def test_every_way_of_fitting_has_its_option(run: Run, folder: Path) -> None:
    done = run(
        *fit_arguments(folder), "--json", "--transform", "linear-act", "--regulator", "logistic*schedule",
        "--incremental", "--selection", "top", "--top", 1, "--tokens", "last",
    )  # fmt: skip
    settings = json.loads(done.out)["settings"]
    assert (settings["transform"], settings["regulator"]) == ("linear-act", "logistic*schedule")
    assert (settings["fitted"], settings["selection"]) == ("incrementally", "top 1")
    assert settings["reading"]["tokens"] == "last"


def test_files_longer_than_the_reservoir_are_fitted_as_generators_of_their_lines_are(run: Run, folder: Path) -> None:
    settings = json.loads(run(*fit_arguments(folder), "--json", "--reservoir", 4, "--general", 0).out)["settings"]
    assert settings["reservoir"] == {"size": 4, "seed": 0, "transform": "all examples"}
    found = dsas.Steering.from_pretrained(folder / "kind")
    model, tokenizer = dsas.load_model(str(folder / "model"), device="cpu")
    sets = dict(zip(("source", "control", "target"), map(iter, SETS.values()), strict=True))
    assert found.digest() == dsas.fit(model, tokenizer, **sets, reservoir=4, progress=False).digest()


def test_spans_of_the_source_are_read_and_used(run: Run, folder: Path) -> None:
    lines = [json.dumps({"text": text, "spans": [[0, 7]]}) for text in SETS["rude"]]
    (folder / "rude.jsonl").write_text("\n".join(lines))
    arguments = [folder / "rude.jsonl" if x == folder / "rude.txt" else x for x in fit_arguments(folder)]
    assert json.loads(run(*arguments, "--spans", "--json").out)["settings"]["labels"] == "tokens"
    refused = run(*fit_arguments(folder), "--spans")
    assert (refused.status, "spans are read from a file ending in .jsonl" in refused.err) == (2, True)


def test_what_is_trained_on_files_is_the_steering_that_the_library_trains_and_its_log_is_beside_it(
    run: Run, folder: Path
) -> None:
    options = ["--objective", "e2e-dsas", "--regulator-form", "relu", "--steps", 3, "--control-weight", 0.5, "--json"]
    done = run("train", *fit_arguments(folder)[1:], *options)
    assert done.status == 0, done.err
    shown = json.loads(done.out)
    expected = dsas.train(
        tiny_model(layers=2), tiny_tokenizer(), source=SETS["rude"], control=SETS["plain"], target=SETS["kind"],
        objective=dsas.E2E(regulator_form="relu", control_weight=0.5), steps=3, running=dsas.Running(progress=False),
    )  # fmt: skip
    assert dsas.Steering.from_pretrained(folder / "kind").digest() == expected.digest()
    assert shown["settings"] == json.loads(json.dumps(expected.settings))
    assert len(Path(shown["log"]).read_text().splitlines()) == 1 + 4


def test_training_goes_on_from_a_part_of_what_was_fitted(run: Run, folder: Path) -> None:
    assert run(*fit_arguments(folder), "--threshold", 0, "--sites", "residual").status == 0
    fitted = dsas.Steering.from_pretrained(folder / "kind")
    train = ["train", *fit_arguments(folder)[1:-1], folder / "kinder", "--objective", "preference", "--steps", 3]
    done = run(*train, "--start", folder / "kind", "--start-strength", 0.1)
    assert done.status == 0, done.err
    expected = dsas.train(
        tiny_model(layers=2), tiny_tokenizer(), source=SETS["rude"], control=SETS["plain"], target=SETS["kind"],
        objective="preference", start=0.1 * fitted, steps=3, running=dsas.Running(progress=False),
    )  # fmt: skip
    assert dsas.Steering.from_pretrained(folder / "kinder").digest() == expected.digest()
    refused = run(*train, "--start", "fited")
    assert (refused.status, "--start must be fitted, scratch or a Steering: 'fited'" in refused.err) == (2, True)
    refused = run(*train, "--regulator", "logistic")
    assert (refused.status, "objective 'preference' has no option 'regulator'" in refused.err) == (2, True)
    refused = run(*train, "--start-strength", 0.1)
    assert (refused.status, "--start is 'fitted'" in refused.err) == (2, True)


def test_training_goes_on_from_what_was_trained(run: Run, folder: Path) -> None:
    train = ["train", *fit_arguments(folder)[1:-1]]
    assert run(*train, folder / "kind", "--steps", 2).status == 0
    done = run(*train, folder / "kinder", "--steps", 2, "--start", folder / "kind")
    assert done.status == 0, done.err
    refused = run(*train, folder / "kinder", "--start", folder / "kind", "--start-strength", 0.5)
    assert (refused.status, "only additions of vectors have exact sums and multiples" in refused.err) == (2, True)


def test_an_interrupted_training_writes_the_best_so_far_and_ends_as_interrupted(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsas.training.trainer import Trainer

    take = Trainer.step

    def step(trainer: Trainer, number: int) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return take(trainer, number)

    monkeypatch.setattr(Trainer, "step", step)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = run("train", *fit_arguments(folder)[1:], "--steps", 5)
    assert done.status == 130
    assert "interrupted after 2 steps: this is the best so far" in done.err
    assert dsas.Steering.from_pretrained(folder / "kind").settings["training"]["steps"] == 2
    monkeypatch.setattr(Trainer, "step", take)
    assert run("train", *fit_arguments(folder)[1:], "--steps", 5).status == 0
    settings = dsas.Steering.from_pretrained(folder / "kind").settings
    assert (settings["training"]["steps"], settings["training"]["stopped"]) == (5, "finished")


def test_what_is_fitted_from_files_is_the_steering_that_the_library_fits(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(*fit_arguments(folder), "--json")
    assert done.status == 0, done.err
    shown = json.loads(done.out)
    assert [line["site"] for line in shown["sites"]] == ["model.layers.0", "model.layers.1"]
    assert shown["saved"] == str(folder / "kind")
    expected = dsas.fit(
        tiny_model(layers=2),
        tiny_tokenizer(),
        source=SETS["rude"],
        control=SETS["plain"],
        target=SETS["kind"],
        progress=False,
    )
    assert dsas.Steering.from_pretrained(folder / "kind").digest() == expected.digest()
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    told = run("info", folder / "kind", "--json")
    assert json.loads(told.out)["sites"] == shown["sites"]


def test_a_fit_says_what_it_fires_on_in_texts_that_the_model_writes_by_itself(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsas.evaluation import firing

    asked = []

    def written(_model: Any, _tokenizer: Any, n: int, **_options: Any) -> list[str]:
        asked.append(n)
        return ["shut up again"] * n

    monkeypatch.setattr(firing, "general_texts", written)
    told = json.loads(run(*fit_arguments(folder), "--json", "--general", 5).out)["fires_on"]
    assert [(kind["kind"], kind["value"]["n"]) for kind in told["kinds"]] == [("source", 5), ("general text", 5)]
    assert "fires on general text" in told["warnings"][0]
    shown = run(*fit_arguments(folder))
    assert "warning: fires on general text" in shown.out
    assert "half of it is a good start" in shown.out
    (folder / "same.txt").write_text("\n".join(f"shut up {n}{n}" for n in range(8)))
    nothing = ["--control", folder / "same.txt", "--threshold", 1]
    for options in (["--general", 0], ["--regulator", "constant"], nothing):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is steered
            assert "fires_on" not in json.loads(run(*fit_arguments(folder), "--json", *options).out)
    assert asked == [5, 40]


def test_a_model_that_writes_too_little_is_fitted_all_the_same_and_the_command_says_what_is_not_known(
    run: Run, folder: Path
) -> None:
    done = run(*fit_arguments(folder), "--json")
    assert done.status == 0
    assert "whether regulators fire on general text was not checked: expected 40 different texts" in done.err
    assert "fires_on" not in json.loads(done.out)


def test_generate_shows_the_steered_text_beside_the_unsteered_one(run: Run, folder: Path) -> None:
    assert run(*fit_arguments(folder)).status == 0
    given = ["generate", folder / "model", "shut up", "--steering", folder / "kind", "--new-tokens", 6, "--json"]
    compared = json.loads(run(*given, "--strength", 4, "--compare").out)
    (row,) = compared["generations"]
    assert compared["strength"] == 4.0
    assert row["steered"] != row["unsteered"]
    (plain,) = json.loads(run("generate", folder / "model", "shut up", "--new-tokens", 6, "--json").out)["generations"]
    assert plain == {"prompt": "shut up", "unsteered": row["unsteered"]}
    (zero,) = json.loads(run(*given, "--strength", 0).out)["generations"]
    assert zero["steered"] == row["unsteered"]
    table = run("generate", folder / "model", "--file", folder / "rude.txt", "--new-tokens", 1).out
    assert all(text in table for text in SETS["rude"])


def test_an_interrupted_fit_says_so_and_goes_on_where_it_was(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsas.fitting.collect import _Store

    put, seen = _Store.put, []

    def interrupted(self: Any, rows: list[int], vectors: Any) -> None:
        put(self, rows, vectors)
        seen.extend(rows)
        if len(seen) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Store, "put", interrupted)
    stopped = run(*fit_arguments(folder), "--batch-size", 4)
    assert (stopped.status, (folder / "kind").exists()) == (130, False)
    assert "rerun the same command to resume" in stopped.err
    assert run(*fit_arguments(folder), "--batch-size", 4).status == 0
    assert sorted(seen) == list(range(24))  # every text once


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "{}/model", "--source", "{}/rud.txt", "--control", "{}/plain.jsonl", "--out", "{}/x"], "'rude.txt'"),
        (["fit", "{}/model", "--source", "{}/rude.txt", "--control", "{}/rude.txt", "--out", "{}/x"], "same texts"),
        (["generate", "{}/none", "hello"], "a folder with a transformers model"),
        (["generate", "{}/model"], "either one prompt or --file"),
        (["generate", "{}/model", "hello", "--compare"], "--compare needs --steering"),
        (["generate", "{}/model", "hello", "--chat"], "no chat template"),
        (
            ["generate", "{}/model", "hello", "--precision", "half"],
            "Invalid value for '--precision': 'half' is not one of 'auto', 'float32', 'bfloat16', 'float16'",
        ),
        (["generate", "{}/model", "hello", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["info", "{}/nothing"], "nothing"),
        (["fit", "{}/model", "--out", "{}/x"], "--source"),
        (["demo", "--model", "gpt5"], "'gpt5' is not one of 'smollm2', 'gemma3'"),
        (["demo", "--prompts", "0"], "--prompts"),
    ],
)
def test_bad_input_ends_with_status_2_and_a_message_that_helps(
    run: Run, folder: Path, arguments: list[str], message: str
) -> None:
    ended = run(*(argument.format(folder) for argument in arguments))
    assert ended.status == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["fit", "generate", "info", "demo", "explain", "inspect-data", "playground"])
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    told = run(command, "--help")
    assert told.status == 0
    assert f"Example: dsas {command}" in " ".join(told.out.split())


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_on_the_error_stream(run: Run, folder: Path) -> None:
    arguments = [a for a in fit_arguments(folder) if a not in ("--target", folder / "kind.csv")]
    ended = run(*arguments)
    assert ended.status == 0
    assert "warning: no target texts were given: the control texts are the target" in ended.err.splitlines()
