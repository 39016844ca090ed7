# SPDX-License-Identifier: Apache-2.0
"""`python -m load_tests`: Modelyard and its peers, one load generator, one table."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from load_tests import bench
from load_tests.batching import make_slow_model
from load_tests.report import save, to_json, to_markdown

ALL_SERVERS = ("modelyard", "kserve", "mlserver")
HTTP, GRPC = "http://127.0.0.1:8000", "127.0.0.1:9000"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m load_tests", description=__doc__)
    add = found.add_argument
    add("--servers", nargs="+", choices=ALL_SERVERS, default=list(ALL_SERVERS), help="which servers to measure")
    add("--config", type=Path, default=Path("configs/platform.yaml"), help="what the platform is started with")
    add("--command", default="", help="start the platform with this command instead")
    add("--url", help=f"use the platform that is running here; one started here listens on {HTTP}")
    add("--grpc", default=GRPC, help="the platform's gRPC address")
    add("--models", type=Path, default=Path("models"), help="the example models, trained where missing")
    add("--bench-dir", type=Path, default=Path(".bench"), help="environments, models and logs of the benchmark")
    add("--seconds", type=float, default=5, help="length of one measurement")
    add("--warmup", type=float, default=1, help="load before each measurement, not counted")
    add("--rounds", type=int, default=1, help="measure each workload this often on each server, in turn")
    add("--only", default="", help="workloads whose title has this text, such as gRPC or 256x30")
    add("--apart", action="store_true", help="start one server at a time")
    add("--start-timeout", type=float, default=180, help="seconds a server may take until it is ready")
    add("--no-batching", action="store_true", help="do not measure what batching is worth on a model of 5 ms a call")
    add("--save", action="store_true", help="write the report to load_tests/results/")
    return found


def to_options(arguments: argparse.Namespace) -> bench.Options:
    slow = None if arguments.no_batching else make_slow_model(Path(".bench/slow"))
    return bench.Options(
        servers=tuple(name for name in ALL_SERVERS if name in arguments.servers),
        config=arguments.config,
        command=tuple(shlex.split(arguments.command)),
        url=arguments.url or HTTP,
        grpc=arguments.grpc,
        is_running=arguments.url is not None,
        models=arguments.models,
        bench=arguments.bench_dir,
        seconds=arguments.seconds,
        warmup_s=arguments.warmup,
        rounds=arguments.rounds,
        is_apart=arguments.apart,
        start_timeout_s=arguments.start_timeout,
        only=arguments.only,
        slow_model=slow,
    )


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for background commands
    try:
        report = bench.run(to_options(arguments))
    except (RuntimeError, TimeoutError, ValueError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    markdown = to_markdown(report)
    print(markdown)
    if arguments.save:
        print(f"saved {save(report.facts, markdown, to_json(report))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
