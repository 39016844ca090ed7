# SPDX-License-Identifier: Apache-2.0
"""Several processes on one catalog, and what is left when one of them, or the server, is killed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from modelyard.catalog import Catalog, ModelEntry, Owner

PASSWORD = "hunter2"
"""How the server's begins, before the characters that a URL has to escape."""
TIMEOUT_S = 300

WRITER = """
import sys
from modelyard.catalog import Catalog, ModelEntry, Owner
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Catalog(url) as catalog:
    print("open", flush=True)
    for number in range(count):
        entry = ModelEntry(name, {"n": number}, {}, f"{name}-{number}")
        record = catalog.put_model(entry, owner=Owner.REGISTERED)
        print(record.latest.number, flush=True)
"""

OPENER = """
import sys
from modelyard.catalog import Catalog
for url in sys.stdin:
    Catalog(url.strip()).close()
    print("open", flush=True)
"""


def _start(script: str, *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _read_25(writer: subprocess.Popen[str]) -> None:
    """Waits until it has written 25 revisions."""
    assert writer.stdout is not None
    assert [writer.stdout.readline() for _ in range(26)] == ["open\n", *(f"{number}\n" for number in range(1, 26))]


def _check(url: str, acknowledged: int) -> None:
    """The last change is there whole, whether its writer has heard of it or not, and the catalog can be changed."""
    with Catalog(url) as catalog:
        record = catalog.get_model("iris")
        assert record.latest is not None
        assert record.latest.number in (acknowledged, acknowledged + 1)
        assert record.latest.digest == f"iris-{record.spec['n']}"
        assert record.rollout is not None
        assert record.rollout.to == record.latest.number
        assert [one.number for one in catalog.list_revisions("iris")] == list(range(1, record.latest.number + 1))
        after = catalog.put_model(ModelEntry("iris", {}, {}, "after"), owner=Owner.REGISTERED).latest
        assert after is not None
        assert after.number == record.latest.number + 1


def test_two_processes_write_at_once(url: str) -> None:
    writers = [_start(WRITER, url, "shared", "30") for _ in range(2)]
    for writer in writers:
        out, err = writer.communicate(timeout=TIMEOUT_S)
        assert (writer.returncode, err, len(out.split())) == (0, "", 31)
    with Catalog(url) as catalog:
        numbers = [revision.number for revision in catalog.list_revisions("shared")]
        events = catalog.list_events("shared", 1000, after=0)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 30
    assert [event.detail["revision"] for event in events if event.kind != "changed"] == numbers, "ids follow commits"


def _open_at_once(urls: Iterable[str]) -> None:
    lines = "".join(f"{url}\n" for url in urls)
    openers = [_start(OPENER) for _ in range(4)]
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write(lines)
        opener.stdin.flush()
    for opener in openers:
        out, err = opener.communicate(timeout=TIMEOUT_S)
        assert (err, len(out.split())) == ("", lines.count("\n"))


def test_processes_open_a_new_file_at_once(tmp_path: Path) -> None:
    _open_at_once(f"sqlite:///{tmp_path}/{number}.db" for number in range(40))


def test_processes_open_an_empty_database_at_once(server: Any) -> None:
    _open_at_once(server.create_schema() for _ in range(10))


def test_what_was_acknowledged_survives_a_kill(url: str, tmp_path: Path) -> None:
    writer = _start(WRITER, url, "iris", "100000")
    _read_25(writer)
    writer.kill()
    out, _ = writer.communicate(timeout=TIMEOUT_S)
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(tmp_path / "state" / "modelyard.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    _check(url, int(([25, *out.split()])[-1]))


def test_what_was_acknowledged_survives_a_kill_of_the_server(server: Any, postgresql_url: str) -> None:
    writer = _start(WRITER, postgresql_url, "iris", "100000")
    _read_25(writer)
    with server.killed():
        out, err = writer.communicate(timeout=TIMEOUT_S)
    assert "modelyard.errors.Unavailable: the catalog's database failed: " in err
    assert PASSWORD not in err
    _check(postgresql_url, int(([25, *out.split()])[-1]))
