# SPDX-License-Identifier: Apache-2.0
"""One table of all measurements, with ratios to the better peer, and the files that keep it."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from load_tests.measurement import Measurement
from load_tests.modelyard_server import NAME
from load_tests.servers import output_of
from load_tests.workloads import Workload

RESULTS = Path(__file__).parent / "results"
CLIENT_BOUND = 0.95


@dataclass(frozen=True, slots=True)
class Row:
    """One workload's measurements by server name."""

    workload: Workload
    measured: dict[str, Measurement]

    def rate_ratio(self) -> float | None:
        """Return our rate over the better peer's."""
        peers = [one.rate for name, one in self.measured.items() if name != NAME]
        ours = self.measured.get(NAME)
        return ours.rate / max(peers) if ours and peers and max(peers) else None

    def p50_ratio(self) -> float | None:
        """Return our p50 over the better peer's."""
        peers = [one.p50_ms for name, one in self.measured.items() if name != NAME]
        ours = self.measured.get(NAME)
        return ours.p50_ms / min(peers) if ours and peers and min(peers) else None

    def goal(self) -> str:
        """Return the goal and whether it is reached."""
        if (wanted := self.workload.min_rate_ratio) is not None:
            ratio = self.rate_ratio()
            return f"rate >= {wanted:g}x{_verdict(ratio is not None and ratio >= wanted, ratio)}"
        if (wanted := self.workload.max_p50_ratio) is not None:
            ratio = self.p50_ratio()
            return f"p50 <= {wanted:g}x{_verdict(ratio is not None and ratio <= wanted, ratio)}"
        return ""


@dataclass(slots=True)
class Report:
    """Everything a run found out."""

    facts: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _verdict(is_reached: bool, ratio: float | None) -> str:
    if ratio is None:
        return ""
    return ", reached" if is_reached else ", missed"


def machine() -> str:
    """Return the processor's model and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{model}, {os.cpu_count()} cores"


def run_facts(module: str) -> dict[str, str]:
    """Return date, machine, commit and command of this run."""
    commit = output_of(["git", "rev-parse", "--short", "HEAD"]) or "unknown"
    if output_of(["git", "status", "--porcelain", "--untracked-files=no"]):
        commit += "-dirty"
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "load average at start": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "commit": commit,
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    }


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, padded so that it reads as plain text too."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    rows = [header, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def load_table(rows: Sequence[Row]) -> str:
    header = [
        "workload",
        "at once",
        "server",
        "req/s",
        "p50 ms",
        "p99 ms",
        "errors",
        "client CPU",
        "rate ratio",
        "p50 ratio",
        "goal",
    ]
    return markdown_table(header, [line for row in rows for line in _lines(row)])


def _lines(row: Row) -> list[list[str]]:
    lines = []
    for name, one in row.measured.items():
        ratios = [_number(row.rate_ratio()), _number(row.p50_ratio()), row.goal()] if name == NAME else ["", "", ""]
        numbers = [
            _number(one.rate, 0),
            _number(one.p50_ms),
            _number(one.p99_ms),
            str(one.errors),
            f"{one.client_cpu:.0%}",
        ]
        lines.append([row.workload.title, str(row.workload.concurrency), name, *numbers, *ratios])
    return lines


def server_table(servers: Mapping[str, Mapping[str, Any]]) -> str:
    header = ["server", "version", "ready after s", "idle CPU", "process", "MB at rest", "MB after load"]
    lines = []
    for name, one in servers.items():
        for process, at_rest in one["memory_at_rest_mb"].items():
            after = one.get("memory_after_mb", {}).get(process)
            facts = [one["version"], f"{one['ready_s']:.1f}", f"{one['idle_cpu']:.0%}", process]
            lines.append([name, *facts, f"{at_rest:.0f}", _number(after, 0)])
    return markdown_table(header, lines)


def client_bound(rows: Sequence[Row]) -> list[str]:
    """Return a note for each measurement in which the load generator itself had no time left."""
    return [
        f"{row.workload.title} at {row.workload.concurrency}, {name}: client-bound, {one.client_cpu:.0%} of a core"
        for row in rows
        for name, one in row.measured.items()
        if one.client_cpu >= CLIENT_BOUND
    ]


def failed_requests(rows: Sequence[Row]) -> list[str]:
    """Return a note for each measurement with errors: its times and rate say little."""
    return [
        f"{row.workload.title} at {row.workload.concurrency}, {name}: {one.errors} of {one.requests} requests failed"
        for row in rows
        for name, one in row.measured.items()
        if one.errors
    ]


def to_markdown(report: Report) -> str:
    """Return the whole report; ratios are ours over the better peer's in the same run."""
    facts = "\n".join(f"- {name}: {value}" for name, value in report.facts.items())
    parts = ["# Benchmark", facts, load_table(report.rows), server_table(report.servers)]
    if notes := [*report.notes, *failed_requests(report.rows), *client_bound(report.rows)]:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Return the report for machines."""
    rows = [
        {
            **asdict(row.workload),
            "measured": {name: {**asdict(one), "rate": one.rate} for name, one in row.measured.items()},
            "rate_ratio": row.rate_ratio(),
            "p50_ratio": row.p50_ratio(),
        }
        for row in report.rows
    ]
    return {"facts": report.facts, "rows": rows, "servers": report.servers, "notes": report.notes}


def save(facts: Mapping[str, str], markdown: str, data: Mapping[str, Any], kind: str = "") -> Path:
    """Write `<date>-<commit>[-kind].md` and `.json`; return the Markdown file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{facts['date'][:10]}-{facts['commit']}{kind}.md"
    path.write_text(markdown)
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    return path
