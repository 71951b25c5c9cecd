"""A worker process ends when nobody is left to work for, at whatever it is."""

import subprocess
import sys
import time
from pathlib import Path

# What a worker is made of takes a minute to be read, as imports on a busy machine may: when it ends, that was cut.
SCRIPT = """
import os, sys, time
from pathlib import Path
from dsas.parallel.workers import Spread, workers_of

def read(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)

class Makes:
    def __reduce__(self):
        return read, (sys.argv[1],)

if __name__ == "__main__":
    with workers_of(Makes(), Spread(workers=2)) as workers:
        list(workers.run([1, 2]))
"""


def alive(process: str) -> bool:
    """Whether a process runs; one that has ended and waits to be buried does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_workers_whose_parent_is_killed_end_although_they_still_read_what_they_are_made_of(tmp_path: Path) -> None:
    (script := tmp_path / "script.py").write_text(SCRIPT)
    (notes := tmp_path / "notes").mkdir()
    with subprocess.Popen([sys.executable, str(script), str(notes)]) as parent:
        ends = time.monotonic() + 120
        while len(begun := [file.name for file in notes.iterdir()]) < 2 and time.monotonic() < ends:
            time.sleep(0.1)
        assert len(begun) == 2
        assert all(map(alive, begun))
        parent.kill()
    ends = time.monotonic() + 20
    while any(map(alive, begun)) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not any(map(alive, begun))
