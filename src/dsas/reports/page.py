"""Page: one self-contained HTML file without scripts or requests.

Text is escaped wherever it comes from. An SVG is parsed and embedded, with its ids made unique in the page; the page's
policy (Content-Security-Policy) forbids scripts and every request that a part might make.

Limitations: no templates, no scripts, no navigation between pages.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

from dsas.errors import OptionError
from dsas.files.atomic import replace_files
from dsas.reports.heat import TokenHeat, render_heat

# In page.css every pair of text and background has a contrast of 4.5 or more, fully heated tokens included.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Page:
    """A page to which parts are added from top to bottom."""

    def __init__(self, title: str, lead: str) -> None:
        """Begin with the title and one paragraph that says what the page shows."""
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>']
        self._figures = 0

    def heading(self, text: str) -> None:
        """Add a heading."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, rows: Sequence[Mapping[str, str | float | int]], caption: str) -> None:
        """Add a table with a column for each key of the first row; it scrolls sideways in its own box.

        Raises OptionError when there are no rows, or their keys differ.
        """
        columns = _columns(rows)
        numeric = [not all(isinstance(row[column], str) for row in rows) for column in columns]
        header = "".join(_cell("th", name, number) for name, number in zip(columns, numeric, strict=True))
        lines = [
            "".join(_cell("td", _shown(row[name]), number) for name, number in zip(columns, numeric, strict=True))
            for row in rows
        ]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        table = f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
        self._figure(_scrolling(table, caption), caption)

    def figure(self, svg: str, caption: str) -> None:
        """Add a drawing. Raises OptionError when `svg` is not well-formed SVG."""
        self._figures += 1
        self._figure(_scrolling(_inline(svg, f"f{self._figures}-", caption), caption, "drawing"), caption)

    def picture(self, png: bytes, caption: str) -> None:
        """Add a picture, given as a PNG file. Raises OptionError for another one."""
        if not png.startswith(b"\x89PNG"):
            raise OptionError(f"expected a PNG file, got bytes that begin with {png[:8]!r}")
        data = b64encode(png).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
        self._figure(_scrolling(image, caption), caption)

    def heat(self, heats: Sequence[TokenHeat], caption: str, *, peak: float | None = None) -> None:
        """Add lines of tokens that share one scale, from 0 to `peak`; when not given, the largest of their values.

        Raises OptionError for no lines, and where `render_heat` does.
        """
        if not heats:
            raise OptionError("expected at least one line of tokens, got none")
        peak = max((value for heat in heats for value in heat.values), default=0.0) if peak is None else peak
        lines = "".join(render_heat(heat, peak=peak) for heat in heats)
        self._figure(f'{lines}<p class="scale">0 <i></i> {peak:.3g}</p>', caption)

    def compare(self, rows: Sequence[Mapping[str, str]], caption: str) -> None:
        """Add texts side by side (prompt, unsteered, steered): a row each, a column for each key.

        Raises OptionError when there are no rows, or their keys differ.
        """
        columns = _columns(rows)
        blocks = [
            "".join(f'<div><dt>{escape(name)}</dt><dd dir="auto">{escape(row[name])}</dd></div>' for name in columns)
            for row in rows
        ]
        self._figure("".join(f'<dl class="texts">{block}</dl>' for block in blocks), caption)

    def commands(self, lines: Sequence[str]) -> None:
        """Add lines to type into a shell."""
        self._parts.append(f'<pre tabindex="0"><code>{escape(chr(10).join(lines))}</code></pre>')

    def html(self) -> str:
        """Return the whole page; the same parts give the same text."""
        parts = "\n".join(self._parts)
        style = (files("dsas.reports") / "page.css").read_text(encoding="utf-8")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self._title)}</title>\n<style>\n{style}</style>\n</head>\n"
            f"<body>\n<main>\n{parts}\n</main>\n</body>\n</html>\n"
        )

    def _figure(self, content: str, caption: str) -> None:
        self._parts.append(f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>")


def write_page(path: str | Path, page: Page) -> None:
    """Write the page and make its folder; an old page is replaced once the new one is on disk. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_files({path: page.html().encode("utf-8", errors="replace")})  # half an emoji becomes ?


def _columns(rows: Sequence[Mapping[str, object]]) -> list[str]:
    if not rows:
        raise OptionError("expected at least one row, got none")
    columns = list(rows[0])
    for number, row in enumerate(rows):
        if set(row) != set(columns):
            raise OptionError(f"expected the keys {columns} in every row, got {list(row)} in row {number}")
    return columns


def _cell(tag: str, text: str, number: bool) -> str:
    scope = ' scope="col"' if tag == "th" else ""
    kind = ' class="number"' if number else ""
    return f"<{tag}{scope}{kind}>{escape(text)}</{tag}>"


def _shown(value: str | float | int) -> str:
    """Return a float with four significant digits, without an exponent in the usual range; other values unchanged."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _scrolling(content: str, caption: str, kind: str = "") -> str:
    name = f"scroll {kind}".strip()
    return f'<div class="{name}" role="region" tabindex="0" aria-label="{escape(caption)}">{content}</div>'


def _inline(svg: str, prefix: str, caption: str) -> str:
    """Return the SVG element without namespaces, its ids and the references to them prefixed."""
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise OptionError(f"expected well-formed SVG, got: {error}") from error
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _referring(name, value, prefix) for name, value in attributes.items()})
    if root.tag != "svg":
        raise OptionError(f"expected an element <svg>, got <{root.tag}>")
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    root.attrib.update({"role": "img", "aria-label": caption})
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _referring(name: str, value: str, prefix: str) -> str:
    if name == "id" or (name == "href" and value.startswith("#")):
        return value.replace("#", f"#{prefix}", 1) if name == "href" else prefix + value
    return re.sub(r"url\((['\"]?)#", rf"url(\1#{prefix}", value)
