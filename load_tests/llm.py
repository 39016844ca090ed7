# SPDX-License-Identifier: Apache-2.0
"""`python -m load_tests.llm`: tokens a second and time to first token, beside `vllm serve` and `ray.serve.llm`.

All serve the same model with the same engine arguments, all are up at the same time, and each is asked in turn, round
after round: what else the machine does meets all of them. Every request generates the same number of tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml

from load_tests import modelyard_server
from load_tests.processes import ServerProcess, free_ports, wait_until

ROOT = Path(__file__).parents[1]
MODEL, TRANSFORMERS = "smollm2", "smollm2-transformers"
STREAMS = (1, 16)
# What the first token takes is some milliseconds more or less: each round has the median of so many short requests of
# each stream.
SHORT_REQUESTS, SHORT_TOKENS = 20, 4
READY_S = 900
# One thread for each engine, as Ray gives a replica of less than two CPUs: the clients need the other core.
CPU = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
ENVIRONMENT = {**CPU, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "RAY_AUTH_MODE": "disabled"}
ENGINE = {"max_model_len": 2048, "enforce_eager": True, "gpu_memory_utilization": 0.2}


@dataclass(slots=True)
class Found:
    """What one server did at one number of streams; a value for each round."""

    tokens_per_s: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)


async def _stream(client: httpx.AsyncClient, model: str, tokens: int, number: int) -> float:
    """One request; seconds to its first token.

    Raises:
        RuntimeError: Another number of tokens came, or an error.
    """
    body = {
        "model": model,
        "prompt": f"{number} and a story about a fox:",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun_s, first_s, generated = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                first_s = first_s or time.perf_counter() - begun_s
                document = json.loads(line[6:])
                generated = (document.get("usage") or {}).get("completion_tokens", generated)
    if generated != tokens:
        raise RuntimeError(f"expected {tokens} tokens, got {generated} (status {reply.status_code})")
    return first_s


async def _round(url: str, model: str, streams: int, tokens: int, found: Found) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        begun_s = time.perf_counter()
        await asyncio.gather(*(_stream(client, model, tokens, number) for number in range(streams)))
        found.tokens_per_s.append(streams * tokens / (time.perf_counter() - begun_s))
        firsts: list[float] = []
        for _ in range(SHORT_REQUESTS):
            firsts += await asyncio.gather(*(_stream(client, model, SHORT_TOKENS, number) for number in range(streams)))
        found.first_ms.append(1000 * statistics.median(firsts))


def _is_up(url: str, process: ServerProcess, model: str) -> bool:
    process.check_running()
    try:
        body = {"model": model, "prompt": "a", "max_tokens": 1}
        return httpx.post(f"{url}/v1/completions", json=body, timeout=300).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def platform(folder: Path, models: tuple[str, ...]) -> Iterator[tuple[str, ServerProcess]]:
    """Ours with these models of ``configs/llm.yaml``, ready: its URL and its process."""
    document = yaml.safe_load((ROOT / "configs" / "llm.yaml").read_text())
    http, grpc = free_ports(2)
    document["http_options"]["port"], document["grpc_options"]["port"] = http, grpc
    arguments = document["applications"][0]["args"]
    arguments["catalog"] = {"url": f"sqlite:///{folder}/catalog.db"}
    arguments["models"] = [spec for spec in arguments["models"] if spec["name"] in models]
    for spec in arguments["models"]:
        spec["uri"] = str(Path(spec["uri"]).absolute())
        if spec["framework"] == "vllm":
            spec["options"] = {"engine": ENGINE}
    file = folder / "platform.yaml"
    file.write_text(yaml.safe_dump(document))
    url = f"http://127.0.0.1:{http}"
    command = modelyard_server.platform_command(file)
    process = modelyard_server.start(command, url, f"127.0.0.1:{grpc}", folder).process
    assert process is not None
    yield from _until_up(url, process, models[0])


@contextmanager
def _vllm(folder: Path, source: Path) -> Iterator[tuple[str, ServerProcess]]:
    (port,) = free_ports(1)
    flags = [f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}" for name, value in ENGINE.items()]
    place = ("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port))
    # What `vllm serve` runs; the command itself does not know that it may come from the package vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(source), *place, *flags]
    process = ServerProcess(command, folder / "vllm.log", ENVIRONMENT)
    yield from _until_up(f"http://127.0.0.1:{port}", process, MODEL)


@contextmanager
def _ray(folder: Path, source: Path) -> Iterator[tuple[str, ServerProcess]]:
    (port,) = free_ports(1)
    arguments = [MODEL, str(source), json.dumps(ENGINE), str(port)]
    command = [sys.executable, "-m", "load_tests.ray_llm_server", *arguments]
    process = ServerProcess(command, folder / "ray.log", ENVIRONMENT | {"RAY_TMPDIR": str(folder)})
    yield from _until_up(f"http://127.0.0.1:{port}", process, MODEL)


def _until_up(url: str, process: ServerProcess, model: str) -> Iterator[tuple[str, ServerProcess]]:
    try:
        if not wait_until(lambda: _is_up(url, process, model), READY_S, 1):
            raise TimeoutError(f"{process.log.stem} is not ready after {READY_S} s; {process.log}")
        yield url, process
    finally:
        process.stop()


def _report(found: Mapping[tuple[str, int], Found], base: str) -> list[str]:
    lines = [
        "| server | streams | tokens/s | to `vllm serve` | first token ms | added ms |",
        "|---|---|---|---|---|---|",
    ]
    for (server, streams), one in found.items():
        other = found.get((base, streams))
        rate, first = statistics.median(one.tokens_per_s), statistics.median(one.first_ms)
        ratio = added = "-"
        if other is not None:
            ratio = f"{statistics.median(a / b for a, b in zip(one.tokens_per_s, other.tokens_per_s, strict=True)):.2f}"
            added = f"{statistics.median(a - b for a, b in zip(one.first_ms, other.first_ms, strict=True)):+.1f}"
        lines.append(f"| {server} | {streams} | {rate:.1f} | {ratio} | {first:.1f} | {added} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with smollm2 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64, help="of each request (%(default)s)")
    parser.add_argument("--servers", nargs="+", default=["modelyard", "vllm", "ray", "transformers"])
    arguments = parser.parse_args()
    source = (arguments.models / MODEL).absolute()
    if not source.is_dir():
        parser.error(f"there is no {source}: python -m modelyard_deployments.examples models {MODEL}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="my-llm-")))
        found, urls = {}, dict[str, tuple[str, str]]()
        models = {"modelyard": MODEL, "transformers": TRANSFORMERS}
        ours = tuple(model for server, model in models.items() if server in arguments.servers)
        if ours:
            url, _ = stack.enter_context(platform(folder, ours))
            urls |= {server: (url, model) for server, model in models.items() if model in ours}
        for server, start in (("vllm", _vllm), ("ray", _ray)):
            if server in arguments.servers:
                urls[server] = (stack.enter_context(start(folder, source))[0], MODEL)
        for streams in STREAMS:
            for number in range(arguments.rounds + 1):
                for server, (url, model) in urls.items():
                    one = found.setdefault((server, streams), Found())
                    asyncio.run(_round(url, model, streams, arguments.tokens, Found() if number == 0 else one))
        print("\n".join(_report(found, "vllm")), flush=True)


if __name__ == "__main__":
    main()
