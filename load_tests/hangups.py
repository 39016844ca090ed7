# SPDX-License-Identifier: Apache-2.0
"""`python -m load_tests.hangups`: streaming clients, half of which hang up early, round after round; what memory does.

The others have to get every token that they have asked for. Prints the memory of each process of the way (the ingress,
the replica, its engine) after the first round, which has caches to fill, and after the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
from pathlib import Path

import httpx

from load_tests import llm
from load_tests.processes import descendants, rss_mb, session, title

_WAYS = {
    "ingress": r"ray::ServeReplica:platform:Ingress",
    "replica": r"ray::ServeReplica:smollm2\S*@1:",
    "engine": r"VLLM::",
}


async def _ask(client: httpx.AsyncClient, model: str, number: int, tokens: int) -> int:
    """Tokens that came; one that hangs up reads no more than the first.

    Raises:
        RuntimeError: An answer ended before its end.
    """
    body = {"model": model, "prompt": f"{number} and", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        came = 0
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                if "error" in json.loads(line[6:]):
                    raise RuntimeError(line)
                came += 1
                if number % 2:
                    return came
    if came < tokens:
        raise RuntimeError(f"expected {tokens} tokens, got {came} (status {reply.status_code})")
    return came


async def _round(url: str, model: str, clients: int, tokens: int) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(_ask(client, model, number, tokens) for number in range(clients)))


def _memory(leader: int) -> dict[str, float]:
    """MB of each process of the way."""
    pids = {*descendants(leader), *session(leader)}
    return {name: rss_mb(pid for pid in pids if re.match(way, title(pid))) for name, way in _WAYS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--model", choices=[llm.MODEL, llm.TRANSFORMERS], default=llm.MODEL)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="my-llm-") as folder,
        llm.platform(Path(folder), (options.model,)) as (url, process),
    ):
        seen: list[dict[str, float]] = []
        for _ in range(options.rounds + 1):
            asyncio.run(_round(url, options.model, options.clients, options.tokens))
            seen.append(_memory(process.pid))
        streams = options.rounds * options.clients
        print(
            f"{streams} streams of {options.tokens} tokens, half of them hung up after the first; the others complete"
        )
        for name in _WAYS:
            first, *_, last = values = [memory[name] for memory in seen]
            print(f"{name}: {first:.0f} MB after the first round, {max(values):.0f} at most, {last:.0f} at the end")


if __name__ == "__main__":
    main()
