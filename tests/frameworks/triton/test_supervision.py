# SPDX-License-Identifier: Apache-2.0
"""The server dies and is there again; its owner dies and nothing is left."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import ModelLoadError, ModelNotReady
from modelyard.model import Model, load_model

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
OWNER = """
import sys, time
from pathlib import Path
from modelyard.model import load_model

model = load_model("triton", Path(sys.argv[1]), {"server": sys.argv[2], "models": ["sums", "slow"]})
print(model._supervisor.target, flush=True)
time.sleep(60)
"""


def shared_memory() -> set[str]:
    """Regions of models of Tritons that this product has started."""
    return {path.name for path in Path("/dev/shm").glob("modelyard_triton_*")}


def processes(marker: str) -> dict[int, str]:
    """Command lines with this text, by process."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if entry.name.isdigit() and marker in command and int(entry.name) != os.getpid():
            found[int(entry.name)] = command
    return found


def server_pid(folder: str) -> int:
    (pid,) = [pid for pid, command in processes(folder).items() if command.split()[0].endswith("/tritonserver")]
    return pid


def wait_until(is_so: Callable[[], Any], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


async def until_so(is_so: Callable[[], Any]) -> None:
    while not is_so():  # noqa: ASYNC110  # whatever it is, none of it tells
        await asyncio.sleep(0.01)


def folder_of(model: Any) -> str:
    return str(Path(model._supervisor.target.removeprefix("unix:")).parent)


def sums(model: Model) -> Any:
    return model.members["sums"].predict({"INPUT": ROWS}, ("OUTPUT",), {})


@pytest.fixture
def model(repository: Path, server: str) -> Iterator[Model]:
    loaded = load_model("triton", repository, {"server": server, "models": ["sums", "slow"]})
    yield loaded
    loaded.close()


def test_nothing_is_left_after_close(model: Model, host: Model) -> None:
    folder, others = folder_of(model), processes(folder_of(host))
    before = shared_memory()
    model.close()
    assert not processes(folder)
    assert not Path(folder).exists()
    assert processes(folder_of(host)) == others
    assert shared_memory() < before
    assert shared_memory()  # of the other server


def test_a_killed_server_is_started_again_and_no_request_is_lost(model: Model, run: Any) -> None:
    folder = folder_of(model)

    async def keep_asking(errors: list[ModelNotReady], answers: list[Any], until: asyncio.Event) -> None:
        while not until.is_set():
            try:
                answers.append(await sums(model))
            except ModelNotReady as error:
                errors.append(error)
                await asyncio.sleep(0.02)

    async def scenario() -> tuple[list[ModelNotReady], list[Any]]:
        errors: list[ModelNotReady] = []
        answers: list[Any] = []
        until = asyncio.Event()
        asking = [asyncio.create_task(keep_asking(errors, answers, until)) for _ in range(8)]
        await asyncio.sleep(0.3)
        os.kill(server_pid(folder), signal.SIGKILL)
        await until_so(lambda: errors)
        answered = len(answers)
        await until_so(lambda: len(answers) > answered + 100)
        until.set()
        await asyncio.gather(*asking)  # which raises whatever is no ModelNotReady
        return errors, answers

    errors, answers = run(scenario())
    assert 'model "sums" is not ready: its Triton has ended and is being started' in {str(one) for one in errors}
    assert all(np.array_equal(answer["OUTPUT"], ROWS * 2) for answer in answers)
    model.check_health()  # once is no reason to replace the replica


def test_a_request_that_is_running_when_the_server_dies_is_answered(model: Model, run: Any) -> None:
    async def scenario() -> None:
        slow = asyncio.create_task(
            model.members["slow"].predict({"delay_ms": np.array([20000], np.int32)}, ("delay_ms_was",), {})  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.5)
        os.kill(server_pid(folder_of(model)), signal.SIGKILL)
        with pytest.raises(ModelNotReady):
            await slow

    run(scenario())


def test_shared_memory_of_a_killed_server_is_removed(model: Model, host: Model) -> None:
    before = shared_memory()
    pid = server_pid(folder_of(model))
    (own,) = {command.split("shm-region-prefix-name=")[1].split()[0] for command in [processes(folder_of(model))[pid]]}
    assert any(name.startswith(own) for name in before)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(name.startswith(own) for name in shared_memory()))


def test_a_server_that_dies_again_and_again_makes_the_replica_unhealthy(model: Any) -> None:
    for _ in range(3):
        model.check_health()
        wait_until(lambda: model._supervisor._listens())
        os.kill(server_pid(folder_of(model)), signal.SIGKILL)
        wait_until(lambda: not model._supervisor._listens())
    wait_until(lambda: model._supervisor._failures == 3)
    with pytest.raises(RuntimeError, match="Triton has ended 3 times"):
        model.check_health()


@pytest.mark.parametrize("victim", ["owner", "guard"])
def test_nothing_outlives_a_killed_process(repository: Path, server: str, victim: str) -> None:
    before = shared_memory()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(repository), server],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout is not None
    folder = str(Path(owner.stdout.readline().strip().removeprefix("unix:")).parent)
    first = server_pid(folder)
    assert shared_memory() > before
    try:
        if victim == "guard":
            (guard,) = [pid for pid, command in processes(folder).items() if "_triton_guard" in command]
            os.kill(guard, signal.SIGKILL)
            wait_until(lambda: first not in processes(folder))
            wait_until(lambda: processes(folder))  # the owner has started another
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    wait_until(lambda: not processes(folder))
    wait_until(lambda: shared_memory() <= before)
    assert not Path(folder).exists()


def test_a_failed_start_leaves_nothing(repository: Path, server: str) -> None:
    before = shared_memory()
    with pytest.raises(ModelLoadError):
        load_model("triton", repository, {"server": server, "args": ["--nosuch=1"]})
    assert shared_memory() == before
    assert not processes("--nosuch=1")
