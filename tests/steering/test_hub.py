"""A Steering goes to the hub and comes back; what goes wrong there is said in a sentence.

The hub is a stand-in on this machine, and each program runs in a process of its own, as HF_ENDPOINT is read at import.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_stand_in import GATED, LICENCES, Hub, hub_stand_in
from makers import random_steering

from dsas.errors import OptionError
from dsas.steering.hub import hub_reason
from dsas.testing import tiny_model

PUSH = """
import json, sys
import dsas
steering, ended = dsas.Steering.from_pretrained(sys.argv[1]), {}
def tried(name, call):
    try:
        ended[name] = call()
    except Exception as error:
        ended[name] = f"{type(error).__name__}: {error}"
for name, repository, token in json.loads(sys.argv[2]):
    tried(name, lambda: steering.push_to_hub(repository, token=token))
load = dsas.Steering.from_pretrained
tried("loaded", lambda: load("someone/calm").digest())
tried("at its commit", lambda: load("someone/calm", revision=ended["pushed"].rpartition("/")[2]).digest())
tried("missing", lambda: load("someone/clam"))
tried("missing, logged in", lambda: load("someone/clam", token="hf_right"))
tried("wrong token", lambda: load("someone/clam", token="hf_wrong"))
tried("no such revision", lambda: load("someone/calm", revision="v2"))
tried("gated", lambda: load("someone/gated", token="hf_reads"))
tried("no Steering", lambda: load("someone/gated", token="hf_right"))
print(json.dumps(ended))
"""
PUSHED = [
    ("pushed", "someone/calm", "hf_right"),
    ("by its name alone", "calm", "hf_right"),
    ("pushed with a wrong token", "someone/calm", "hf_wrong"),
    ("pushed without one", "someone/calm", None),
    ("pushed with one that may not write", "someone/calm", "hf_reads"),
    ("pushed to another owner", "other/calm", "hf_right"),
    ("pushed to no name", "a/b/c", "hf_right"),
]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[dict[str, str], Hub]]:
    with hub_stand_in() as (address, hub):
        hub.repos[GATED] = {}
        places = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        yield {**os.environ, **places, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}, hub


def done(program: list[Any], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *map(str, program)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_steering_goes_to_the_hub_with_its_card_and_comes_back(
    hub: tuple[dict[str, str], Hub], tmp_path: Path
) -> None:
    environment, held = hub
    what = 'Says "calm" *less*: [a](b) | <b>c</b> --- é'
    steering = random_steering(tiny_model("llama", layers=2)).described(
        what,
        model="OWNER/MODEL-1.0",
        licence="Apache-2.0",
        evidence=["answers: 40 % to 10 %"],
        limits=["English: only."],
    )
    steering.save_pretrained(tmp_path / "calm")
    ended = done(["-c", PUSH, tmp_path / "calm", json.dumps(PUSHED)], environment)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["pushed"].startswith(f"{environment['HF_ENDPOINT']}/someone/calm/commit/")
    assert told["by its name alone"] == told["pushed"]  # nothing has changed meanwhile
    assert told["loaded"] == told["at its commit"] == steering.digest()
    assert held.repos["someone/calm"] == {file.name: file.read_bytes() for file in (tmp_path / "calm").iterdir()}
    card = huggingface_hub.ModelCard(held.repos["someone/calm"]["README.md"].decode())
    assert what in card.text
    assert "- answers: 40 % to 10 %" in card.text
    data: Any = card.data
    assert (data.library_name, data.license, data.base_model) == ("dsas", LICENCES[0], "OWNER/MODEL-1.0")
    assert list(held.repos) == [GATED, "someone/calm"]  # refused ones made none
    wanted = "the hub wants a token that it accepts: log in with `hf auth login`, or give token="
    absent = "the hub has no such repository, or it is private and the token may not read it"
    neither = "is neither a local folder nor a readable hub id"
    for name, message in {
        "pushed with a wrong token": f"not uploaded to 'someone/calm': {wanted}",
        "pushed without one": f"not uploaded to 'someone/calm': {wanted}",
        "pushed with one that may not write": "the token has no right to do that",
        "pushed to another owner": "not uploaded to 'other/calm': the token has no right",
        "pushed to no name": "not uploaded to 'a/b/c': a hub id is OWNER/NAME",
        "missing": f"'someone/clam' {neither}: {absent}",
        "missing, logged in": absent,
        "wrong token": f"'someone/clam' {neither}: {wanted}",
        "no such revision": "the repository has no such revision",
        "gated": "access to the repository must be asked for on its page first",
        "no Steering": "is not a stored Steering: config.json, model.safetensors not found",
    }.items():
        assert told[name].startswith("ArtifactError: "), name
        assert message in told[name], name
        assert "\n" not in told[name], name


def test_the_command_line_takes_a_hub_id_and_says_why_one_cannot_be_read(
    hub: tuple[dict[str, str], Hub], tmp_path: Path
) -> None:
    environment, held = hub
    steering = random_steering(tiny_model("llama", layers=2))
    steering.save_pretrained(tmp_path / "calm")
    held.repos["someone/calm"] = {file.name: file.read_bytes() for file in (tmp_path / "calm").iterdir()}
    ended = done(["-m", "dsas.cli", "info", "someone/calm", "--json"], environment)
    assert [line["site"] for line in json.loads(ended.stdout)["sites"]] == [str(rule.site) for rule in steering.rules]
    nowhere = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}  # where nothing answers
    ended = done(["-m", "dsas.cli", "info", "someone/clam"], nowhere)
    assert (ended.returncode, ended.stderr.count("the hub cannot be reached: check the connection")) == (2, 1)
    assert done(["-m", "dsas.cli", "info", "someone/calm"], nowhere).returncode == 0  # it was downloaded before


def test_options_of_an_upload_are_refused_where_nothing_is_uploaded(tmp_path: Path) -> None:
    steering = random_steering(tiny_model())
    with pytest.raises(OptionError, match=r"repo_id, private of save_pretrained: they go with push_to_hub=True"):
        steering.save_pretrained(tmp_path / "calm", repo_id="me/calm", private=True)
    assert not (tmp_path / "calm").exists()


def test_an_error_of_no_known_kind_is_told_in_one_line() -> None:
    assert hub_reason(RuntimeError("it\n  broke")) == "it broke"
    assert hub_reason(RuntimeError()) == "RuntimeError"
