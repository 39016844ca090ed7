# SPDX-License-Identifier: Apache-2.0
"""Constant arrival rate: requests leave on a schedule, whether or not earlier ones have been answered.

A latency counts from the moment the request was due, not from the moment it was sent, so a server that stalls is
charged for the requests that waited behind the stall (coordinated omission). Thresholds belong to the scenario; missing
one is exit status 1. v2 JSON over HTTP: `python -m load_tests.open_loop steady --url http://127.0.0.1:8000`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import orjson

from load_tests.artifacts import BREAST_CANCER, IRIS, get_models
from load_tests.measurement import percentile
from load_tests.modelyard_server import connect, find_input
from load_tests.report import markdown_table, run_facts, save
from load_tests.workloads import Question, check_answers

LATE_MS = 20.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A rate held for a time, and what the answers must reach."""

    model: str
    rate_per_s: float
    duration_s: float
    max_p99_ms: float
    max_error_share: float = 0.0
    timeout_s: float = 10.0


SCENARIOS = {
    "steady": Scenario(IRIS, rate_per_s=200, duration_s=20, max_p99_ms=50),
    "wide": Scenario(BREAST_CANCER, rate_per_s=50, duration_s=20, max_p99_ms=100),
}


@dataclass(slots=True)
class Outcome:
    """What came of the schedule. `late_s` is how long after its time each request left: the generator's own fault."""

    latencies_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def p_ms(self, share: float) -> float:
        return percentile(sorted(self.latencies_s), share) * 1e3

    def late_p99_ms(self) -> float:
        return percentile(sorted(self.late_s), 0.99) * 1e3

    def error_share(self) -> float:
        return sum(self.errors.values()) / max(1, len(self.latencies_s))

    def count_error(self, what: str) -> None:
        self.errors[what] = self.errors.get(what, 0) + 1


async def _send(client: httpx.AsyncClient, request: httpx.Request, answers: list[Any], outcome: Outcome) -> None:
    """Send one request and count its outcome; its due time travels with it as `due_s`."""
    due_s: float = request.extensions["due_s"]
    outcome.late_s.append(time.perf_counter() - due_s)
    try:
        response = await client.send(request)
        if response.status_code != httpx.codes.OK:
            outcome.count_error(str(response.status_code))
        else:
            check_answers(orjson.loads(response.content)["outputs"][0]["data"], answers, str(request.url))
    except httpx.HTTPError as exc:
        outcome.count_error(type(exc).__name__)
    except (ValueError, LookupError, TypeError):
        outcome.count_error("wrong answer")
    outcome.latencies_s.append(time.perf_counter() - due_s)


async def hold_rate(url: str, question: Question, scenario: Scenario) -> Outcome:
    """Send on schedule, then wait for the last answers."""
    outcome, body, headers = Outcome(), question.body("v2"), {"content-type": "application/json"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(timeout=scenario.timeout_s, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        begun_s = time.perf_counter()
        for number in range(round(scenario.rate_per_s * scenario.duration_s)):
            due_s = begun_s + number / scenario.rate_per_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            request = client.build_request("POST", url, content=body, headers=headers, extensions={"due_s": due_s})
            group.create_task(_send(client, request, question.model.answers, outcome))
    return outcome


def failures(scenario: Scenario, outcome: Outcome) -> list[str]:
    """Return the thresholds that were missed."""
    found = []
    if outcome.p_ms(0.99) > scenario.max_p99_ms:
        found.append(f"p99 {outcome.p_ms(0.99):.1f} ms is above {scenario.max_p99_ms:g} ms")
    if outcome.error_share() > scenario.max_error_share:
        found.append(f"errors {outcome.error_share():.2%} are above {scenario.max_error_share:.2%}: {outcome.errors}")
    return found


def describe(name: str, scenario: Scenario, outcome: Outcome) -> str:
    """Return the result as a table and a verdict."""
    header = ["scenario", "rate/s", "requests", "p50 ms", "p99 ms", "max ms", "errors", "sent late p99 ms"]
    times = [f"{outcome.p_ms(share):.2f}" for share in (0.5, 0.99, 1.0)]
    counts = [f"{scenario.rate_per_s:g}", str(len(outcome.latencies_s))]
    line = [name, *counts, *times, f"{outcome.error_share():.2%}", f"{outcome.late_p99_ms():.2f}"]
    verdict = "; ".join(failures(scenario, outcome)) or "all thresholds held"
    if outcome.late_p99_ms() > LATE_MS:
        verdict += "; the generator itself was late: use a lower rate or a quieter machine"
    return f"{markdown_table(header, [line])}\n\n{verdict}\n"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m load_tests.open_loop", description="hold a constant arrival rate")
    found.add_argument("scenario", choices=sorted(SCENARIOS))
    found.add_argument("--url", default="http://127.0.0.1:8000")
    found.add_argument("--models", type=Path, default=Path("models"), help="the example models, trained where missing")
    found.add_argument(
        "--default-input", action="store_true", help="do not ask for metadata; the input is input-0, FP64"
    )
    for name, meaning in (("rate", "requests a second"), ("duration", "seconds"), ("p99-ms", "threshold")):
        found.add_argument(f"--{name}", type=float, help=f"{meaning}, instead of the scenario's")
    found.add_argument("--max-error-share", type=float, help="threshold, instead of the scenario's")
    found.add_argument("--save", action="store_true", help="write the result to load_tests/results/")
    return found


def to_scenario(arguments: argparse.Namespace) -> Scenario:
    given = {
        "rate_per_s": arguments.rate,
        "duration_s": arguments.duration,
        "max_p99_ms": arguments.p99_ms,
        "max_error_share": arguments.max_error_share,
    }
    return replace(SCENARIOS[arguments.scenario], **{name: value for name, value in given.items() if value is not None})


def main() -> int:
    arguments = parser().parse_args()
    scenario, server = to_scenario(arguments), connect(arguments.url, "")
    model = get_models(arguments.models)[scenario.model]
    question = Question(model, *(() if arguments.default_input else find_input(server, model.name)))
    outcome = asyncio.run(hold_rate(server.infer_url("v2", model.name), question, scenario))
    facts = run_facts("load_tests.open_loop")
    text = describe(arguments.scenario, scenario, outcome)
    print(text)
    if arguments.save:
        listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
        data = {"facts": facts, "scenario": asdict(scenario), "p99_ms": outcome.p_ms(0.99), "errors": outcome.errors}
        markdown = f"# Open loop\n\n{listed}\n\n{text}"
        print(f"saved {save(facts, markdown, data, f'-{arguments.scenario}')}")
    return 1 if failures(scenario, outcome) else 0


if __name__ == "__main__":
    sys.exit(main())
