import re
from html.parser import HTMLParser

import pytest

from dsas.errors import OptionError
from dsas.reports.heat import TokenHeat
from dsas.reports.page import Page, write_page

HOSTILE = "</p><script>alert('x')</script> & \"quoted\""
SVG = """<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
<defs><path id="dot" d="M 0 0"/><clipPath id="box"/></defs>
<g clip-path="url(#box)"><use xlink:href="#dot"/></g></svg>"""
VOID = {"meta", "br", "img", "hr"}


class Tags(HTMLParser):
    """Keeps the open tags, the ids, and every tag seen; a tag closed out of order is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(page: Page) -> Tags:
    tags = Tags()
    tags.feed(page.html())
    tags.close()
    return tags


def full_page(text: str) -> Page:
    page = Page(text, text)
    page.heading(text)
    page.paragraph(text)
    page.table([{text: text, "share": 0.25, "n": 3}], text)
    page.figure(SVG, text)
    page.heat([TokenHeat(text, [text], [1.0])], text)
    page.compare([{text: text, "steered": text}], text)
    page.commands([text])
    return page


def test_every_part_closes_the_tags_it_opens():
    assert parsed(full_page("plain")).open == []


def test_hostile_text_is_shown_as_text_in_every_part():
    hostile, plain = parsed(full_page(HOSTILE)), parsed(full_page("plain"))
    assert hostile.open == []
    assert hostile.seen == plain.seen
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert hostile.text == plain.text.replace("plain", HOSTILE)


def test_the_page_asks_for_nothing_outside_itself():
    html = full_page("plain").html()
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|<link|<script|@import|url\((?!#)", html)


def test_a_drawing_shown_twice_has_ids_that_differ_and_references_that_follow():
    page = Page("title", "lead")
    page.figure(SVG, "first")
    page.figure(SVG, "second")
    attributes = parsed(page).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert sorted(ids) == ["f1-box", "f1-dot", "f2-box", "f2-dot"]
    assert [value for name, value in attributes if name == "href"] == ["#f1-dot", "#f2-dot"]
    assert [value for name, value in attributes if name == "clip-path"] == ["url(#f1-box)", "url(#f2-box)"]


@pytest.mark.parametrize(("svg", "message"), [("<svg>", "well-formed"), ("<p>text</p>", "<svg>, got <p>")])
def test_a_drawing_that_is_no_svg_is_refused(svg: str, message: str):
    with pytest.raises(OptionError, match=message):
        Page("title", "lead").figure(svg, "caption")


def test_a_table_is_refused_when_a_row_has_other_keys():
    with pytest.raises(OptionError, match=r"\['b'\] in row 1"):
        Page("title", "lead").table([{"a": 1}, {"b": 2}], "caption")


def test_numbers_in_a_table_keep_four_digits_and_no_exponent():
    page = Page("title", "lead")
    page.table([{"small": 0.123456, "large": 12345.67, "count": 12345}], "caption")
    assert re.findall(r'<td class="number">(.*?)</td>', page.html()) == ["0.1235", "12,346", "12345"]


def test_heats_of_one_call_share_the_scale():
    page = Page("title", "lead")
    page.heat([TokenHeat("a", ["x"], [1.0]), TokenHeat("b", ["y"], [4.0])], "caption")
    assert re.findall(r"--heat:([\d.]+)", page.html()) == ["0.250", "1.000"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "reports" / "page.html"
    write_page(path, Page("old", "lead"))

    def full_disk(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_page(path, Page("new", "lead"))
    assert "<title>old</title>" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_half_an_emoji_does_not_stop_a_page_from_being_written(tmp_path):
    write_page(tmp_path / "page.html", Page("cut \ud83d here", "lead"))
    assert "cut ? here" in (tmp_path / "page.html").read_text(encoding="utf-8")
