"""Pages of the site that are generated while it is built; a hook of mkdocs.

| page | made from |
|---|---|
| tutorials/NAME.md | docs/tutorials/NAME.py, with the outputs from when `make notebooks` last ran this text |
| reference/command-line.md | the commands of `dsas.cli`, by their own definitions |
| project/NAME.md | NAME.md at the root of the repository |
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebooks import TUTORIALS, markdown_of

ROOT = Path(__file__).resolve().parents[1]
OF_PROJECT = (
    "ARCHITECTURE.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md",
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and drop the source texts of tutorials, which are shown as pages."""
    for path in sorted(TUTORIALS.glob("*.py")):
        text, pictures = markdown_of(path)
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=data))
        files.remove(files.get_file_from_path(f"tutorials/{path.name}"))
    files.append(File.generated(config, "reference/command-line.md", content=command_line()))
    for name in OF_PROJECT:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"project/{name.lower()}", content=in_project(text)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Make links to files outside docs/ lead to their pages."""
    depth = "../" * page.file.src_uri.count("/")
    for name in OF_PROJECT:
        markdown = markdown.replace(f"]({depth}../{name}", f"]({depth}project/{name.lower()}")
    return markdown


def in_project(text: str) -> str:
    """Return a file of the repository's root as a page of project/: links to docs/ and to its neighbours follow."""
    text = re.sub(r"\]\(docs/", "](../", text)
    for name in OF_PROJECT:
        text = text.replace(f"]({name}", f"]({name.lower()}")
    return text


def command_line() -> str:
    """Return the reference of the command line, a section per command, from the definitions that parse it."""
    import typer.main

    from dsas.cli import app

    group: Any = typer.main.get_command(app)
    parts = [
        "# Command line\n\nMade from the definitions that parse the commands. Every command has `--help`, and `--json` "
        "where it prints results. Exit status: 0 done, 1 a check failed, 2 a mistake in the call, 130 interrupted."
    ]
    for name, command in group.commands.items():
        parts.append("\n\n".join(_command(name, command)))
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## dsas {name}"
    yield _plain(command.help or "")
    if command.epilog:
        yield _plain(command.epilog)
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not getattr(one, "hidden", False)]
    usage = " ".join([name, *map(_placeholder, arguments), *(["[OPTIONS]"] if options else [])])
    yield f"```console\n$ dsas {usage}\n```"
    if arguments:
        rows = [f"| `{one.name.upper()}` | {_cell(getattr(one, 'help', '') or '')} |" for one in arguments]
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows])
    if options:
        yield "\n".join(["| option | meaning | default |", "|---|---|---|", *map(_option, options)])


def _placeholder(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def _option(one: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
    default = one.default() if callable(one.default) else one.default
    shown = "required" if one.required else "" if default in (None, "", [], (), False) else f"`{_told(default)}`"
    return f"| {names} | {_cell(one.help or '')} | {shown} |"


def _told(default: Any) -> str:
    value = getattr(default, "value", default)
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _plain(text: str) -> str:
    return text.replace("\f", "").strip()


def _cell(text: str) -> str:
    return " ".join(_plain(text).split()).replace("|", "\\|").replace("<", "&lt;")
