# SPDX-License-Identifier: Apache-2.0
"""Frames on the lane, and the folder of its sockets."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.batching import Answer, Call
from modelyard.errors import DeadlineExceeded, InvalidTensor, ModelFailed
from modelyard.serve.lane import Kind, LaneProtocol, encode_frame, lane_folder, socket_path
from modelyard.tensor import DATATYPES


class _Received:
    """A protocol that keeps its frames."""

    def __init__(self) -> None:
        self.frames: list[tuple[Kind, int, Any]] = []
        self.lost = 0
        self.protocol = LaneProtocol(lambda _, *frame: self.frames.append(frame), self._on_lost)

    def _on_lost(self, _: LaneProtocol) -> None:
        self.lost += 1


def _frame(kind: Kind, ident: int, payload: object) -> bytes:
    return b"".join(encode_frame(kind, ident, payload))


def _numbers(rows: int) -> np.ndarray:
    return np.arange(rows * 4, dtype=np.float64).reshape(rows, 4)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
async def test_frames_arrive_whole_however_they_are_cut(chunk: int):
    sent = [(Kind.CALL, 1, "a"), (Kind.CANCEL, 2, None), (Kind.ANSWER, 2**40, [1, 2]), (Kind.GOODBYE, 0, None)]
    data = b"".join(_frame(*frame) for frame in sent)
    received = _Received()
    for start in range(0, len(data), chunk):
        received.protocol.data_received(data[start : start + chunk])
    assert received.frames == sent


@pytest.mark.parametrize("chunk", [1000, 65536, 1 << 24])
async def test_large_arrays_arrive_whole_and_aligned(chunk: int):
    big, small = _numbers(5000), _numbers(3)
    answers = [Answer(merged={"a": big, "b": small, "c": big[:2501].astype(np.float32)}), Answer(merged={"a": big})]
    data = b"".join(_frame(Kind.ANSWER, index, ("x" * index, answer)) for index, answer in enumerate(answers))
    received = _Received()
    for start in range(0, len(data), chunk):
        received.protocol.data_received(data[start : start + chunk])
    for (_, _, (_, answer)), sent in zip(received.frames, answers, strict=True):
        for name, array in sent.merged.items():
            np.testing.assert_array_equal(answer.merged[name], array)
            assert answer.merged[name].flags.aligned


@pytest.mark.parametrize("rows", [0, 1, 50_000])
@pytest.mark.parametrize("datatype", sorted(DATATYPES))
async def test_every_datatype_survives(datatype: str, rows: int):
    dtype = DATATYPES[datatype].dtype
    array = np.array([b"\xff\x00", b""] * rows, dtype=object) if dtype.kind == "O" else np.ones(2 * rows, dtype=dtype)
    received = _Received()
    received.protocol.data_received(_frame(Kind.CALL, 1, (Call({"x": array}, (rows,), ("y",), {"p": True}), 3)))
    (_, _, (call, backlog)) = received.frames[0]
    assert (call.inputs["x"].dtype, call.parameters, backlog) == (dtype, {"p": True}, 3)
    assert call.inputs["x"].tolist() == array.tolist()


@pytest.mark.parametrize("error", [ModelFailed("m", "r"), InvalidTensor("a", "b", "c"), DeadlineExceeded(1.5)])
async def test_errors_arrive_as_they_were(error: Exception):
    received = _Received()
    received.protocol.data_received(_frame(Kind.ERROR, 1, error))
    arrived = received.frames[0][2]
    assert (type(arrived), arrived.args, str(arrived)) == (type(error), error.args, str(error))


async def test_a_frame_that_cannot_be_read_closes_the_lane(tmp_path: Path, until):
    received = _Received()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # the protocol raises: the event loop logs it and closes
    server = await loop.create_unix_server(lambda: received.protocol, str(tmp_path / "s"))
    _, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    writer.write(_frame(Kind.CALL, 1, "x").replace(b"\x80\x05", b"\x80\xff"))
    await until(lambda: received.lost)
    assert not received.protocol.is_open
    writer.close()
    server.close()


async def test_frames_of_one_turn_arrive_in_order(tmp_path: Path, until):
    here, there = _Received(), _Received()
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: there.protocol, str(tmp_path / "s"))
    await loop.create_unix_connection(lambda: here.protocol, str(tmp_path / "s"))
    for ident in range(100):
        here.protocol.send(Kind.CALL, ident, _numbers(ident * 30))
    here.protocol.close()
    await until(lambda: there.lost and here.lost)
    assert [ident for _, ident, _ in there.frames] == list(range(100))
    server.close()


async def test_sending_on_a_closed_lane_does_nothing(tmp_path: Path, until):
    here, there = _Received(), _Received()
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: there.protocol, str(tmp_path / "s"))
    await loop.create_unix_connection(lambda: here.protocol, str(tmp_path / "s"))
    here.protocol.close()
    here.protocol.send(Kind.CALL, 1, "late")
    await until(lambda: there.lost and here.lost)
    here.protocol.send(Kind.CALL, 2, "later")
    here.protocol.close()
    assert there.frames == []
    server.close()


def test_the_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = lane_folder("session")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert lane_folder("session") == folder != lane_folder("another")
    folder.chmod(0o755)
    with pytest.raises(PermissionError):
        lane_folder("session")


def test_socket_paths_fit_the_systems_limit():
    path = socket_path(Path(tempfile.gettempdir()) / "modelyard-1000-0123456789ab", "m" * 63 + "@1000000", "r" * 12)
    assert len(str(path)) < 107
