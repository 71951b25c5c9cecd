"""What README and pages show is run: Python on a tiny model, page by page; commands are parsed by the commands."""

import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from makers import templated

import dsas
from dsas.cli import app
from dsas.testing import tiny_model

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "steerings" / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "console", "sh", "shell")
DATA = ("json", "text", "toml", "yaml", "")  # shown, and neither run nor parsed

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
# What pages leave out by three dots, and sizes that no test needs.
LEFT_OUT = {
    "dsas.fit(..., ": "dsas.fit(model, tokenizer, source=rude, control=plain, target=polite, ",
    "spans=[(10, 19)]), ...], ...)": "spans=[(10, 19)])] * 8, control=plain, target=polite)",
    "model.generate(...)": "model.generate(**inputs, max_new_tokens=2, pad_token_id=0)",
    '"tools": [...]': '"tools": []',
    "max_new_tokens=30": "max_new_tokens=3, pad_token_id=0",
    "pad_token_id=tokenizer.eos_token_id": "pad_token_id=0",
    "generate=40": "generate=3",
    "steps=20": "steps=2",
    "512": "16",
}
NOT_RUN = "  # docs: not run"  # a line that needs a network


def blocks(page: Path, languages: tuple[str, ...]) -> list[str]:
    found = FENCED.findall(page.read_text(encoding="utf-8"))
    return [inspect.cleandoc("\n" + text) for language, text in found if language in languages]


def texts(start: str) -> list[str]:
    return [f"{start} number {n} is here" for n in range(12)]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the pages speak of: a model, its tokenizer, sets of texts, and Steerings, on this disk."""
    import transformers

    from dsas.demo import models
    from dsas.testing import tiny_pipeline

    monkeypatch.chdir(tmp_path)
    model = tiny_model(layers=2, vocab_size=300)
    tokenizer = templated(CHATML, specials=SPECIALS)
    sets: dict[str, Any] = {
        "rude": texts("SHUT UP"), "plain": texts("the door"), "polite": texts("thank you"), "gloomy": texts("so sad"),
        "held_out_rude": texts("GO AWAY"), "held_out_plain": texts("the roof"), "code": texts("x = 1"),
        "news": texts("today"), "other_news": texts("tomorrow"), "clean_comments": texts("well then"),
        "other_comments": texts("oh well"), "prompts": texts("and then"), "a": texts("a"), "b": texts("b"),
        "c": texts("c"), "d": texts("d"), "red_things": texts("red"), "other_things": texts("any"),
        "blue_things": texts("blue"),
    }  # fmt: skip
    sets |= {
        f"{kind}_answers": [(f"why {n}", text) for n, text in enumerate(sets[kind])]
        for kind in ("rude", "plain", "polite")
    }
    steering = dsas.fit(
        model, tokenizer, source=sets["rude"], control=sets["plain"], target=sets["polite"], progress=False
    )
    added = dsas.fit(
        model, tokenizer, source=sets["rude"], control=sets["plain"], target=sets["polite"], regulator="constant",
        sites="model.layers.1", progress=False,
    )  # fmt: skip
    dsas.write_gguf(added, "happy.gguf", strength=1.0)
    evidence = dsas.Calibration(0.5, (), (), None, {}, {}, None, steering.digest(), "0" * 16, "0.1")
    steering.calibrated(evidence).save_pretrained("steerings/smollm2-toxicity")
    Path("losses.csv").write_text("strength,group,kind,text,nats\n0.5,source,source,0,0.1\n1.0,control,code,0,0.2\n")

    def from_pretrained(*_: object, **__: object) -> Any:
        return tiny_pipeline("sd")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr("diffusers.StableDiffusionPipeline.from_pretrained", from_pretrained)
    monkeypatch.setattr(models, "real_model", lambda name: Path(name))
    monkeypatch.setattr(dsas, "load_model", lambda name: (model, tokenizer))
    monkeypatch.setattr(dsas, "draft", drafting)
    monkeypatch.setattr(dsas, "general_texts", lambda _model, _tokenizer, n: [f"it is day {day}" for day in range(n)])
    return {
        **sets, "dsas": dsas, "model": model, "tokenizer": tokenizer, "steering": steering, "detox": steering,
        "formal": steering, "inputs": tokenizer("and", return_tensors="pt"), "other_model": model,
    }  # fmt: skip


def drafting(*given: Any, **options: Any) -> Any:
    """Stand in for `dsas.draft`, which asks a model for answers that no tiny one gives, but check what it is given."""
    inspect.signature(DRAFT).bind(*given, **options)
    rows = {"source": texts("SHUT UP"), "control": texts("the door"), "target": texts("thank you")}
    return SimpleNamespace(save=lambda folder: Path(folder).mkdir(), sets=lambda: rows)


DRAFT = dsas.draft


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.filterwarnings("ignore::dsas.DsasWarning")
def test_python_on_a_page_runs_from_top_to_bottom(page: Path, names: dict[str, Any]) -> None:
    for block in blocks(page, ("python", "py")):
        program = "\n".join(line for line in block.splitlines() if not line.endswith(NOT_RUN))
        for short, whole in LEFT_OUT.items():
            program = program.replace(short, whole)
        torch.manual_seed(0)
        exec(compile(program, str(page), "exec"), names)


def test_no_block_is_of_a_language_that_is_neither_run_nor_parsed_nor_data() -> None:
    found = {language for page in PAGES for language, _ in FENCED.findall(page.read_text(encoding="utf-8"))}
    assert found <= {"python", "py", *SHELL, *DATA}


def commands(page: Path) -> Iterator[str]:
    """Give each command of a page: of shell blocks, and of indented ones."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page, SHELL) for line in block.replace("\\\n", " ").splitlines()]
    indented = FENCED.sub("", text).replace("\\\n", " ").splitlines()
    lines += [line.strip() for line in indented if line.startswith("    ")]
    for line in lines:
        said = line.removeprefix("$ ").split(" && ")[-1]
        words = said.split()
        while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
            words.pop(0)
        program = words[0].rpartition("/")[2] if words else ""
        if program in ("dsas", "make", "python", "pip") and (page.name, said) not in PROSE:
            yield " ".join([program, *words[1:]])


PROSE: set[tuple[str, str]] = set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_a_page_are_those_that_there_are_with_options_that_they_have(page: Path) -> None:
    problems = [f"{command}: {problem}" for command in commands(page) if (problem := wrong(command))]
    assert problems == []


def wrong(command: str) -> str:
    """Return what is wrong with a command, or nothing."""
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        verbs = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return "".join(f"no verb {word}" for word in words if "=" not in word and word not in verbs)
    if program == "python":
        files = [word for word in words if word.endswith(".py")]
        return "".join(f"no file {file}" for file in files if not (ROOT / file).is_file())
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = [extra for word in words for extra in re.findall(r"dsas\[([\w,-]+)\]", word)]
        return "".join(f"no extra {one}" for some in asked for one in some.split(",") if one not in extras)
    return wrong_call(words) if words and not words[0].startswith("-") else ""


def wrong_call(words: list[str]) -> str:
    live: Any = typer.main.get_command(app)
    name, *given = words
    if name not in live.commands:
        return f"no command {name}"
    command = live.commands[name]
    if command.context_settings.get("ignore_unknown_options") or "..." in given:
        return ""
    options = {option: one for one in command.params for option in [*one.opts, *one.secondary_opts]}
    options["--help"] = SimpleNamespace(is_flag=True)
    places, words_left = 0, iter(given)
    for word in words_left:
        option = word.partition("=")[0]
        if not word.startswith("--"):
            places += 1
        elif option not in options:
            return f"no option {option}"
        elif not options[option].is_flag and "=" not in word:
            next(words_left, None)
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    needed = sum(one.required for one in arguments)
    most = len(arguments) if all(one.nargs == 1 for one in arguments) else places
    return (
        "" if needed <= places <= most or "--help" in given else f"expected {needed} to {most} arguments, got {places}"
    )


def test_a_wrong_option_a_missing_file_and_an_unknown_verb_are_found() -> None:
    assert wrong("dsas fit MODEL --sources a.txt") == "no option --sources"
    assert wrong("dsas fitt MODEL") == "no command fitt"
    assert wrong("dsas fit --out there") == "expected 1 to 1 arguments, got 0"
    assert wrong("make tests") == "no verb tests"
    assert wrong("python benchmarks/no_such.py") == "no file benchmarks/no_such.py"
    assert wrong("pip install 'dsas[no-such]'") == "no extra no-such"
