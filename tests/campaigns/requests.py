"""Requests: what is sent to a server that steers, at random, ends in an answer of ours, and changes only what it may.

    python -m campaigns.requests --rounds 30000 --seed 0          (from tests/; it needs fastapi, not vLLM)

Half of them go to the operator's endpoint, with folders, names, bodies and headers of every kind; half ask as clients
do. What is refused leaves tables, slots and names as they were; what is loaded can be unloaded.
"""

import hashlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from campaigns.rounds import among, begun
from safetensors.torch import load, save

from dsas.errors import DsasError
from dsas.serving.requests import Entry, acting, named, resolve, salt

sys.path.append(str(Path(__file__).parents[1] / "serving"))
from operated import KEY, Operated

LONGEST = 2000  # bytes of an answer that says what is wrong
NAMES = (
    *("extra", "détox", "a b", "x" * 100, "", " ", ".", "..", "../../x", "a/b", "a\\b", "a\nb", "\x1b[31m", "\x00"),
    *("‮x", "\ud800", "x" * 300, "x" * 10**6, "detox", 3, None, ["detox"], {"a": 1}, True, 10**400, "%2e%2e", "?", "#"),
)
VALUES = (
    *("detox", "topic", "detoks", "", "\ud800", "\x00", "x" * 10**6, 0, 1, -1, 0.5, 1e6, -1e7, 1e39, float("nan")),
    *(float("inf"), True, False, None, [], {}, [[]], ["detox"], ["detox", "topic"], ["detox"] * 10**5, {"a": 1}),
    *(10**5000, -(10**5000), [10**5000], [0.5, 10**5000], ["detox", None], [float("nan")], "1", "much"),
)
KEYS = ("dsas_steering", "dsas_strength", "dsas_report", "dsas_resolved", "dsas" * 10**4, "dsas\ud800", "other")


def signed(folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Change a stored Steering, and give it right digests."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load((folder / "model.safetensors").read_bytes())
    change(config, tensors)
    data = save(tensors)
    config["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    body = {key: value for key, value in config.items() if key != "config_sha256"}
    config["config_sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text(json.dumps(config))


def narrower(tensors: dict[str, torch.Tensor], *, all_of_them: bool) -> None:
    """Cut the vectors of the second rule, or its regulator's alone, by one number."""
    for name, value in tensors.items():
        if name.startswith("1.") and value.ndim and (all_of_them or name.endswith("theta")):
            tensors[name] = value[:-1].clone()


def folders(root: Path, outside: Path) -> list[str]:
    """Make folders of every kind below `root`, and one outside; returns how a request may call them."""
    original = root / "topic"

    def copy(name: str) -> Path:
        shutil.copytree(original, root / name)
        return root / name

    (root / "empty").mkdir()
    (root / "a file").write_text("x")
    (copy("cut config") / "config.json").write_text('{"schema": 1')
    (copy("not JSON") / "config.json").write_bytes(b"\xff\xfe")
    (copy("deep") / "config.json").write_text("[" * 100_000)
    (copy("long number") / "config.json").write_text('{"schema": ' + "1" * 5000 + "}")
    (copy("cut tensors") / "model.safetensors").write_bytes((original / "model.safetensors").read_bytes()[:50])
    signed(copy("schema"), lambda config, _: config.update(schema=99))
    signed(copy("another model"), lambda config, _: config["model"].update(model_class="Other", depth=99))
    signed(copy("method"), lambda config, _: config["rules"][0]["transform"].update(name="\x1b[31mno"))
    signed(copy("site"), lambda config, _: config["rules"][0]["site"].update(path="model.layers.7"))
    signed(copy("path"), lambda config, _: config["rules"][0]["site"].update(path="../\x1b[31m" + "x" * 10**4))
    signed(copy("theta"), lambda _, tensors: narrower(tensors, all_of_them=False))
    signed(copy("narrow"), lambda _, tensors: narrower(tensors, all_of_them=True))
    with (copy("large") / "model.safetensors").open("r+b") as file:
        file.truncate(5 * 2**30)
    with (copy("large config") / "config.json").open("r+b") as file:
        file.truncate(3 * 2**30)
    for name in ("config.json", "model.safetensors"):
        folder = copy(f"folder for {name}")
        (folder / name).unlink()
        (folder / name).mkdir()
        folder = copy(f"pipe for {name}")
        (folder / name).unlink()
        os.mkfifo(folder / name)
        folder = copy(f"loop for {name}")
        (folder / name).unlink()
        (folder / name).symlink_to(name)
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("gone")
    shutil.copytree(original, outside / "topic")
    (root / "out").symlink_to(outside / "topic")
    below = [str(path) for path in root.iterdir()]
    inside = [name for one in ("detox", "topic") for name in (one, f"./{one}", f"empty/../{one}")]
    away = [str(outside / "topic"), os.path.relpath(outside / "topic", root), "someone/absent", "absent"]
    strange = ["", ".", "..", "/", "/dev", "/dev/null", "/proc/self", "x" * 300, "x/" * 3000, "a\x00b", "\ud800", "~"]
    return [*below, *inside, *away, *strange, "x" * 10**6]


def body_of(drawn: random.Random, called: list[str]) -> bytes:
    """Return the body of a request to load something."""
    kind = drawn.random()
    name, folder = drawn.choice(NAMES), drawn.choice(called)
    if kind < 0.3:
        return json.dumps({"name": "extra", "folder": folder}).encode()
    if kind < 0.5:
        return json.dumps({"name": name, "folder": drawn.choice(("detox", "topic"))}).encode()
    if kind < 0.6:
        return json.dumps({"name": name, "folder": folder}).encode()
    if kind < 0.7:
        fields = {drawn.choice(("name", "folder", "x", "\ud800")): drawn.choice(VALUES[:-8]) for _ in range(3)}
        return json.dumps(fields).encode()
    if kind < 0.8:
        whole = bytearray(json.dumps({"name": "extra", "folder": "detox"}).encode())
        whole[drawn.randrange(len(whole))] ^= 1 << drawn.randrange(8)
        return bytes(whole)
    strange = (
        b"",
        b"null",
        b"3",
        b"[]",
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b"1" * 5000,
        b'{"name": ' + b"1" * 4301 + b"}",
    )
    more = (
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"NaN",
        b'{"name": "x" * 10}',
        b'{"name": "' + b"x" * 10**6 + b'"}',
        b"\x00",
    )
    return drawn.choice(strange + more)


def headers_of(drawn: random.Random, key: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Return headers, and whether they carry the operator's key."""
    right = drawn.random() < 0.75
    wrong = [b"", b"Bearer", b"Bearer ", b"Bearer x", key, b"bearer " + key[:-1], b"Bearer " + "clé".encode("latin-1")]
    wrong += [b"Bearer " + bytes([value]) for value in (128, 255)] + [b"Bearer " + b"x" * 10**5, b"Basic " + key]
    said = b"Bearer " + key if right else drawn.choice(wrong)
    kinds = (
        b"application/json",
        b"application/json",
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"",
        b"\xff",
    )
    headers = [(b"content-type", drawn.choice(kinds))]
    return headers + ([(b"authorization", said)] if said else []), right


def operated(server: Operated, drawn: random.Random, called: list[str], outside: Path) -> str:
    """Send one request to the operator's endpoint; returns how that ended."""
    os.environb[b"DSAS_OPERATOR_KEY"] = key = drawn.choice((KEY, b"plain"))
    headers, right = headers_of(drawn, key)
    method = drawn.choice(("POST",) * 6 + ("GET", "DELETE", "DELETE", "PUT", "HEAD", "OPTIONS"))
    name = drawn.choice([name for name in NAMES if isinstance(name, str) and len(name) < 10**4])
    path = f"/{quote(name, safe='', errors='replace')}" if method == "DELETE" else ""
    if drawn.random() < 0.05:
        path = drawn.choice(("/", "//", "/a/b", "/%00", "/..", "?x=" + "y" * 1000))
    body = body_of(drawn, called) if method in ("POST", "PUT") or drawn.random() < 0.1 else b""
    names, slots, rows = server.names, server.slots(), server.rows()
    begun = time.perf_counter()
    answer = server.ask(method, path, body, key=None, headers=headers, parts=drawn.choice((1, 1, 1, 3, 0)))
    if answer.status >= 500:
        return f"WRONG: {answer.status}"
    if time.perf_counter() - begun > 2:
        return "WRONG: it took more than 2 s"
    if right and answer.status == 401:
        return "WRONG: the key is not taken"
    if not right and answer.status not in (401, 404, 405, 307):
        return f"WRONG: {answer.status} without the key"
    if answer.status >= 400:
        same = (names, slots) == (server.names, server.slots()) and all(map(torch.equal, rows, server.rows()))
        if not same:
            return f"WRONG: {answer.status}, but something has changed"
        return "refused" if len(answer.body) <= LONGEST else f"WRONG: {answer.status} of more than {LONGEST} bytes"
    if method != "POST" or answer.status != 200:
        return f"{method}: {answer.status}"
    ((loaded, source),) = json.loads(answer.body).items()
    if Path(source["folder"]).is_relative_to(outside):
        return "WRONG: loaded from outside of the root"
    if server.ask("DELETE", f"/{quote(loaded, safe='', errors='surrogatepass')}", key=key).status != 200:
        server.config.additional_config["dsas"]["steerings"].pop(loaded)
        return "WRONG: loaded under a name that cannot be unloaded"
    if loaded == "detox":
        server.ask("POST", body={"name": "detox", "folder": "detox"}, key=key)
    return "loaded and unloaded"


def asked(drawn: random.Random) -> str:
    """Ask for Steerings as a client does; returns how that ended."""
    entries = {"detox": Entry("d1", 0.8), "topic": Entry("d2", 1.0)}
    given = {drawn.choice(KEYS[: drawn.choice((2, 3, 7))]): drawn.choice(VALUES) for _ in range(drawn.randrange(4))}
    begun = time.perf_counter()
    try:
        found = resolve(given, entries, 2, reports=drawn.random() < 0.5)
        acting(given, entries) if named(given) else ()
        salt(found)
        ended = "let in" if all(abs(one.strength) <= 1e6 for one in found) else "WRONG: let in"
    except DsasError as error:
        try:
            ended = "refused" if len(str(error).encode()) <= LONGEST else "WRONG: a long message"
        except UnicodeEncodeError:
            ended = "WRONG: a message that cannot be sent"
    return ended if time.perf_counter() - begun < 2 else "WRONG: it took more than 2 s"


def run(rounds: int, seed: int) -> Counter[str]:
    """Return how often which end came."""
    drawn, found = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as outside:
        below, away = Path(root).resolve(), Path(outside).resolve()
        os.environ["DSAS_OPERATOR_ROOT"] = str(below)
        os.chdir(below)
        server = Operated(below, spare=40)
        called = folders(below, away)
        called += ["detox", "topic"] * 5
        for number in among(rounds):
            try:
                what = operated(server, drawn, called, away) if number % 2 else asked(drawn)
            except Exception as error:
                what = f"WRONG {type(error).__name__}: {error}"[:100]
            found[f"{'operator' if number % 2 else 'client'}: {what}"] += 1
        os.chdir("/")
    return found


if __name__ == "__main__":
    options = begun(__doc__, 3000)
    logging.disable()
    counts = run(options.rounds, options.seed)
    print(f"{counts.total()} rounds: {dict(counts.most_common())}")
    raise SystemExit(any("WRONG" in what for what in counts))
