# SPDX-License-Identifier: Apache-2.0
"""A platform on two nodes: another raylet of its cluster, with an address and temporary files of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import KNOWN_OUTPUT
from load import Load
from platform_process import BIN, PlatformProcess, base_document, running, wait_until

from modelyard.client import Platform

REPLICAS = 4
LOST = {r"node.*(dead|died|removed|terminated)|missed too many heartbeats": "a test ends a node"}


@pytest.fixture(scope="module")
def platform(make_folder: Any) -> Iterator[PlatformProcess]:
    """A platform whose only proxy is the head's: nodes of one machine share its ports."""
    document = base_document()
    document["proxy_location"] = "HeadOnly"
    document["applications"][0]["args"]["models"] = []
    process = PlatformProcess(make_folder(), document)
    with running(process):
        yield process
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT | LOST) == []


@pytest.fixture(scope="module")
def client(platform: PlatformProcess) -> Iterator[Platform]:
    with Platform.connect(platform.url, timeout_s=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def node(platform: PlatformProcess) -> Iterator[subprocess.Popen[bytes]]:
    """The second node; process ids and files tell its processes from the head's."""
    (head,) = set(re.findall(r"--gcs-address=(\S+)", "\n".join(platform.processes().values())))
    temporary = platform.folder / "second"
    temporary.mkdir()
    command = [str(BIN / "ray"), "start", "--block", f"--address={head}", "--node-ip-address=127.0.0.2", "--num-cpus=1"]
    command += ["--object-store-memory=100000000", "--dashboard-agent-listen-port=0"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    own = {"RAY_AUTH_MODE": "token", "TMPDIR": str(temporary)}
    log_file = platform.folder / "second.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=platform.folder,
            env=platform.environment() | own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "Ray runtime started" in log_file.read_text(), 60, "the second node")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _on_second_node(platform: PlatformProcess, pids: set[int]) -> set[int]:
    marker = f"TMPDIR={platform.folder / 'second'}\0".encode()
    return {pid for pid in pids if marker in Path(f"/proc/{pid}/environ").read_bytes()}


def _ask(http: httpx.Client, conversation: int, turn: int = 0) -> int:
    """Process id of who answered."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"conversation {conversation}"}]
    for _ in range(turn):
        messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and then?"}]
    reply = http.post("/v1/chat/completions", json={"model": "parrot", "messages": messages})
    assert reply.status_code == httpx.codes.OK, reply.text
    return int(reply.json()["choices"][0]["message"]["content"])


def _answer_all(http: httpx.Client, pids: set[int]) -> bool:
    """The ingress knows all of these, and no others: what conversations are sent to follows from that."""
    return {_ask(http, conversation) for conversation in range(60)} == pids


@pytest.fixture(scope="module")
def replicas(platform: PlatformProcess, client: Platform, node: subprocess.Popen[bytes]) -> set[int]:
    """Process ids of a model's replicas, on both nodes."""
    client.register(
        "parrot",
        framework="custom",
        uri="models/parrot",
        options={"entrypoint": "model:Parrot"},
        autoscaling={"min_replicas": REPLICAS, "max_replicas": REPLICAS},
        resources={"num_cpus": 0.2},
        wait=True,
    )
    wait_until(lambda: client.status("parrot").replicas_ready == REPLICAS, 60, "all replicas")
    pids = platform.replicas("parrot@1")
    assert 0 < len(_on_second_node(platform, pids)) < REPLICAS
    with httpx.Client(base_url=platform.url, timeout=60) as http:
        wait_until(lambda: _answer_all(http, pids), 60, "all replicas to be known")
    return pids


def test_a_conversation_stays_with_its_replica_on_whatever_node(platform: PlatformProcess, replicas: set[int]) -> None:
    answered: dict[int, list[int]] = defaultdict(list)
    with httpx.Client(base_url=platform.url, timeout=60) as http:
        for turn in range(4):
            for conversation in range(60):
                answered[conversation].append(_ask(http, conversation, turn))
    own = {conversation: max(set(asked), key=asked.count) for conversation, asked in answered.items()}
    assert set(own.values()) == replicas
    # Serve passes a replica over that does not say in 0.1 s how much it has to do.
    strays = [pid for conversation, asked in answered.items() for pid in asked if pid != own[conversation]]
    assert len(strays) <= 3, answered


def test_a_node_that_is_taken_away_costs_no_request(
    platform: PlatformProcess, client: Platform, node: subprocess.Popen[bytes], replicas: set[int]
) -> None:
    gone = _on_second_node(platform, replicas)
    is_over = threading.Event()

    def chat() -> int:
        with httpx.Client(base_url=platform.url, timeout=60) as http:
            for conversation in count():
                _ask(http, conversation % 60)
                if is_over.is_set():
                    return conversation
        raise AssertionError

    with ThreadPoolExecutor(2) as chats, Load(platform.url, "parrot", ["polly"]) as load:
        asked = [chats.submit(chat) for _ in range(2)]
        wait_until(lambda: load.answered > 100, 30, "requests to be answered")
        node.send_signal(signal.SIGTERM)
        node.wait(120)
        wait_until(lambda: len(platform.replicas("parrot@1") - gone) == REPLICAS, 60, "replicas in their place")
        wait_until(lambda: client.status("parrot").replicas_ready == REPLICAS, 60, "all replicas")
        answered = load.answered
        wait_until(lambda: load.answered > answered + 100, 30, "more answers")
        is_over.set()
        assert all(chatted.result() > 100 for chatted in asked)
    assert set(load.statuses) == {200}, load.refusals
    now = platform.replicas("parrot@1")
    assert replicas - gone <= now
    with httpx.Client(base_url=platform.url, timeout=60) as http:
        wait_until(lambda: _answer_all(http, now), 60, "the new replicas to be known")
