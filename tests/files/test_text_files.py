"""Text files: the three formats, and errors that name the file and the line."""

from pathlib import Path

import pytest

from dsas.errors import TextsError
from dsas.files.text_files import each_record, read_spans, read_texts

GOOD = {
    "a.txt": "first\n\n  second, indented\ngrüße\n",
    "a.jsonl": '{"text": "first", "n": 1}\n\n"  second, indented"\n{"text": "gr\\u00fc\\u00dfe"}\n',
    "a.csv": 'n,text\n1,first\n2,"  second, indented"\n3,grüße\n',
    "a.CSV": 'text\nfirst\n"  second, indented"\ngrüße\n',
}


@pytest.mark.parametrize("name", GOOD)
def test_every_format_gives_the_same_texts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(GOOD[name], encoding="utf-8")
    assert read_texts(tmp_path / name) == ["first", "  second, indented", "grüße"]


def test_another_field_can_be_named_and_a_quoted_text_may_have_many_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,comment\nno,"one\ntwo"\n')
    (tmp_path / "a.jsonl").write_text('{"text": "no", "comment": "one\\ntwo"}')
    for name in ("a.csv", "a.jsonl"):
        assert read_texts(tmp_path / name, field="comment") == ["one\ntwo"]


def test_lines_end_where_files_say_so_and_a_mark_at_the_beginning_is_no_text(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c"  # line breaks to str.splitlines, not to a text file, and legal inside JSON strings
    contents = {"a.txt": f"{odd}\r\nd", "a.jsonl": f'"{odd}"\r\n"d"', "a.csv": f"text\r\n{odd}\r\nd\r\n"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert read_texts(tmp_path / name) == [odd, "d"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[]", r"a\.json: expected a file ending in \.txt, \.jsonl, \.csv, got '\.json'"),
        ("a", b"x", "a: expected a file ending in .*, got 'no ending'"),
        ("a.txt", b"\n \n", r"a\.txt: there is no text in it"),
        ("a.jsonl", b"", r"a\.jsonl: there is no text in it"),
        ("a.csv", b"text\n", r"a\.csv: there is no text in it"),
        ("a.txt", b"\xff\xfe\x00", r"a\.txt: expected UTF-8 text"),
        ("a.jsonl", b'"one"\n{"text": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"test": "x"}', r"a\.jsonl:1: no field 'text'; closest: 'test'"),
        ("a.jsonl", b'\n{"text": 3}', r"a\.jsonl:2: expected a text, got int"),
        ("a.jsonl", b"[1]", r"a\.jsonl:1: expected a text, got list"),
        ("a.csv", b"txt,label\nx,1\n", r"a\.csv:2: no field 'text'; closest: 'txt'"),
        ("a.csv", b"label,text\n1,x\n\n2\n", r"a\.csv:4: expected a text, got NoneType"),
        ("a.csv", b"text\nyou, fool\n", r"a\.csv:2: expected 1 cells as in the header, got 2"),
        ("a.csv", b'text\n"one\ntwo\n', r"a\.csv: not CSV"),
        ("a.csv", b"text,text\none,two\n", r"a\.csv:1: the column 'text' appears twice"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not JSON"),
        ("a.jsonl", b'"one"\n{"text": "x", "m": {"a": 1, "a": 2}}', r"a\.jsonl:2: the key 'a' appears twice"),
        ("a.txt", "x".encode("utf-16-le"), r"a\.txt:1: expected UTF-8 text, got a zero byte; is the file UTF-16\?"),
        ("a.csv", b"text\nx\0\n", r"a\.csv:2: expected UTF-8 text, got a zero byte"),
        ("a.jsonl", b'"hm \\ud83d"', r"a\.jsonl:1: it holds a lone surrogate"),
        ("a.csv", b"text\n" + b"x" * 200_000, r"a\.csv: not CSV: field larger than field limit"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextsError, match=message):
        read_texts(tmp_path / name)


def test_a_file_that_is_not_there_is_refused_with_the_closest_name(tmp_path: Path) -> None:
    (tmp_path / "rude.txt").write_text("x")
    with pytest.raises(TextsError, match=r"rood\.txt: no such file; closest in its folder: 'rude\.txt'"):
        read_texts(tmp_path / "rood.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_lines_are_read_one_at_a_time(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    head = "text\n" if name == "a.csv" else ""
    file.write_text(head + '"one"\n' * 100_000 + '"zero\0"\n')
    records = each_record(file)
    assert [next(records)[1] for _ in range(3)] == 3 * [{"a.csv": {"text": "one"}, "a.txt": '"one"'}.get(name, "one")]
    with pytest.raises(TextsError, match=f"{name}:10000[12]: "):
        list(records)


def test_spans_come_from_the_lines_of_a_jsonl_file(tmp_path: Path) -> None:
    file = tmp_path / "source.jsonl"
    file.write_text('{"text": "a b", "spans": [[0, 1]]}\n\n{"text": "c"}\n"d"\n')
    assert read_spans(file) == [[(0, 1)], [], []]
    file.write_text('{"text": "a b", "spans": [[0]]}\n')
    with pytest.raises(TextsError, match=r"source.jsonl:1: expected spans as \[\[start, stop\], .*got \[\[0\]\]"):
        read_spans(file)
    with pytest.raises(TextsError, match=r"spans are read from a file ending in \.jsonl, got '\.txt'"):
        read_spans(tmp_path / "source.txt")
