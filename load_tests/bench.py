# SPDX-License-Identifier: Apache-2.0
"""One benchmark run: start the servers, measure each workload on each in turn, end the servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from load_tests import batching, grpc_load, modelyard_server, peers, wrk
from load_tests.artifacts import BenchModel, get_models
from load_tests.measurement import Measurement, combine
from load_tests.report import Report, Row, load_table, run_facts
from load_tests.servers import Server, wait_ready
from load_tests.workloads import WORKLOADS, Question, Workload, check_http

IDLE_CPU_LIMIT = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is told, see `__main__` for the meaning of each."""

    servers: tuple[str, ...]
    config: Path
    command: tuple[str, ...]
    url: str
    grpc: str
    is_running: bool
    models: Path
    bench: Path
    seconds: float
    warmup_s: float
    rounds: int
    is_apart: bool
    start_timeout_s: float
    only: str
    slow_model: batching.SlowModel | None

    @property
    def logs(self) -> Path:
        return self.bench / "logs"


class Bench:
    """The servers of one run and what was found out about them. A context manager: leaving it ends what it started."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.report = Report(run_facts("load_tests"))
        self._stack = ExitStack()
        self._questions: dict[str, Question] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every server that this run started."""
        self._stack.close()

    def start(self, name: str) -> Server:
        """Start one server, wait until it answers, note its memory and idle processor use."""
        print(f"starting {name}", flush=True)
        server = self._start_platform() if name == modelyard_server.NAME else self._start_peer(name)
        models = sorted({workload.model for workload in WORKLOADS})
        ready_s = wait_ready(server, models, self.options.start_timeout_s)
        facts = {"version": server.version, "ready_s": ready_s, "idle_cpu": server.idle_cpu()}
        self.report.servers[name] = {**facts, "memory_at_rest_mb": server.memory_mb()}
        return server

    def _start_platform(self) -> Server:
        options = self.options
        if options.is_running:
            return modelyard_server.connect(options.url, options.grpc)
        command = list(options.command) or modelyard_server.platform_command(options.config)
        server = modelyard_server.start(command, options.url, options.grpc, options.logs)
        self._ends(server)
        return server

    def _start_peer(self, name: str) -> Server:
        environment = peers.environments(self.options.bench)[name]
        artifacts = peers.artifacts_for(environment, self.bench_models, self.options.bench)
        server = peers.STARTERS[name](environment, artifacts, self.options.bench, self.options.logs)
        self._ends(server)
        return server

    def _ends(self, server: Server) -> None:
        if server.process:
            self._stack.callback(server.process.stop)

    @cached_property
    def bench_models(self) -> Mapping[str, BenchModel]:
        """The models the peers load, and the answers every server must give."""
        return get_models(self.options.models)

    def questions(self, platform: Server | None) -> Mapping[str, Question]:
        """Return each model's question, the same for all servers, in the platform's input name and datatype."""
        if not self._questions:
            for name, model in self.bench_models.items():
                found = modelyard_server.find_input(platform, name) if platform else ()
                self._questions[name] = Question(model, *found)
        return self._questions

    def measure(self, server: Server, workload: Workload, question: Question) -> Measurement:
        """Measure one workload on one server; HTTP answers are checked before and after, gRPC ones by the client."""
        options = self.options
        if workload.protocol == "grpc":
            return grpc_load.measure(server.grpc, question, workload.concurrency, options.seconds, options.warmup_s)
        check_http(server, workload.protocol, question)
        url, body = server.infer_url(workload.protocol, workload.model), question.body(workload.protocol)
        found = wrk.measure(url, body, workload.concurrency, options.seconds, options.warmup_s)
        check_http(server, workload.protocol, question)
        return found

    def workloads(self) -> list[Workload]:
        """Return the workloads whose title has the text asked for."""
        return [workload for workload in WORKLOADS if self.options.only.lower() in workload.title.lower()]

    def run_workload(self, servers: Sequence[Server], workload: Workload) -> Row:
        """Measure the servers in turn, round after round, so that a change of the machine's mood hits them all."""
        able = [server for server in servers if workload.protocol in server.protocols]
        rounds: dict[str, list[Measurement]] = {server.name: [] for server in able}
        question = self._questions[workload.model]
        for _ in range(self.options.rounds):
            for server in able:
                rounds[server.name].append(self.measure(server, workload, question))
        return Row(workload, {name: combine(found) for name, found in rounds.items()})

    def run_together(self) -> None:
        """All servers up at once; each idle while another is measured."""
        servers = [self.start(name) for name in self.options.servers]
        self.questions(find_platform(servers))
        for workload in self.workloads():
            row = self.run_workload(servers, workload)
            self.report.rows.append(row)
            print(load_table([row]), flush=True)
        self._finish(servers)
        self._note_idle_cpu()

    def run_apart(self) -> None:
        """One server up at a time: nothing else uses the processor, but they are measured minutes apart."""
        rows = [Row(workload, {}) for workload in self.workloads()]
        for name in self.options.servers:
            server = self.start(name)
            self.questions(find_platform([server]))
            for row in rows:
                row.measured.update(self.run_workload([server], row.workload).measured)
            self._finish([server])
            self.stop()
        self.report.rows = rows

    def _finish(self, servers: Sequence[Server]) -> None:
        for server in servers:
            self.report.servers[server.name]["memory_after_mb"] = server.memory_mb()
        platform, slow = find_platform(servers), self.options.slow_model
        if platform and slow:
            self.report.notes.append(batching.run(platform, slow, self.options.seconds, self.options.warmup_s))

    def _note_idle_cpu(self) -> None:
        for name, facts in self.report.servers.items():
            if facts["idle_cpu"] > IDLE_CPU_LIMIT:
                self.report.notes.append(
                    f"{name} uses {facts['idle_cpu']:.0%} of a core when idle, also while the others are measured: "
                    "compare with --apart"
                )


def find_platform(servers: Sequence[Server]) -> Server | None:
    return next((server for server in servers if server.name == modelyard_server.NAME), None)


def prepare(options: Options) -> None:
    """Check that wrk is there and make the peers' environments, before anything is started."""
    wrk.check_installed()
    for name, environment in peers.environments(options.bench).items():
        if name in options.servers:
            peers.prepare(environment, options.logs)


def run(options: Options) -> Report:
    """Run the benchmark and return what it found."""
    prepare(options)
    with Bench(options) as bench:
        if options.is_apart:
            bench.run_apart()
        else:
            bench.run_together()
        return bench.report
