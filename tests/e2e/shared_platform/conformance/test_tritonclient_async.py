# SPDX-License-Identifier: Apache-2.0
"""Requests in flight of Triton's clients: ``async_infer``, its cancellation, and streams."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from answers import Answers
from made_models import write_sleeper
from platform_process import PlatformProcess
from shared_platform.conformance.triton import to_inputs
from tritonclient.utils import InferenceServerException

from modelyard.client import Platform

FEATURES = np.array([[1.0, 2.0, 3.0, 4.0]])
SCORES = [[1.0, 4.0, 13.0]]
WAIT_S = 20


def text(words: str, delay_ms: int = 0) -> list[Any]:
    arrays = {"text_input": np.array([words.encode()], object), "delay_ms": np.array([delay_ms], np.int32)}
    return to_inputs("grpc", arrays)


def features() -> list[Any]:
    return to_inputs("grpc", {"features": FEATURES})


def word_of(result: Any) -> str:
    return str(result.as_numpy("text_output")[0].decode())


# -- async_infer


def test_http_requests_in_flight_get_their_own_answers(platform: PlatformProcess, answers: dict[str, Answers]) -> None:
    known = answers["iris-lightgbm"]
    with tritonclient.http.InferenceServerClient(platform.host, concurrency=4) as client:
        asked = [
            client.async_infer(
                "iris-lightgbm",
                to_inputs("http", {"input-0": known.inputs["input-0"][row : row + 1]}),
                request_id=str(row),
            )
            for row in range(3)
        ]
        results = [request.get_result(block=True, timeout=WAIT_S) for request in asked]
    assert [result.get_response()["id"] for result in results] == ["0", "1", "2"]
    found = np.concatenate([result.as_numpy("output-0") for result in results])
    np.testing.assert_allclose(found, known.default)


def test_an_http_request_in_flight_that_fails_raises_when_asked(platform: PlatformProcess) -> None:
    with tritonclient.http.InferenceServerClient(platform.host) as client:
        request = client.async_infer("nobody", to_inputs("http", {"features": FEATURES}))
        with pytest.raises(InferenceServerException, match='"nobody" is not found'):
            request.get_result(timeout=WAIT_S)


class Answered:
    """A callback of the gRPC client, and what it was called with."""

    def __init__(self) -> None:
        self._found: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._found.put((result, error))

    def get(self) -> Any:
        """The next answer.

        Raises:
            InferenceServerException: It is an error.
        """
        result, error = self._found.get(timeout=WAIT_S)
        if error is not None:
            raise error
        return result

    def is_empty(self) -> bool:
        return self._found.empty()


@pytest.fixture
def grpc(platform: PlatformProcess) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(platform.grpc) as opened:
        yield opened


def test_a_grpc_request_in_flight_calls_back(grpc: Any) -> None:
    answered = Answered()
    grpc.async_infer("scores", features(), answered, request_id="42", client_timeout=WAIT_S)
    result = answered.get()
    assert result.get_response().id == "42"
    assert result.as_numpy("output-0").tolist() == SCORES


def test_a_grpc_request_in_flight_that_fails_calls_back_with_the_error(grpc: Any) -> None:
    answered = Answered()
    grpc.async_infer("nobody", features(), answered)
    with pytest.raises(InferenceServerException, match='"nobody" is not found'):
        answered.get()


@pytest.fixture(scope="module")
def sleeper(platform: PlatformProcess) -> Iterator[str]:
    """A model that sleeps as many seconds as its row says."""
    write_sleeper(platform.folder / "models" / "conformance-sleeper")
    with Platform.connect(platform.url) as client:
        client.register("conformance-sleeper", framework="sklearn", uri="models/conformance-sleeper", wait=True)
        yield "conformance-sleeper"
        client.unregister("conformance-sleeper", wait=True)


def test_a_cancelled_request_calls_back_at_once(grpc: Any, sleeper: str) -> None:
    answered = Answered()
    began = time.monotonic()
    context = grpc.async_infer(sleeper, to_inputs("grpc", {"input-0": np.array([[2.0]])}), answered)
    time.sleep(0.3)  # the request is at the model: that it is is nowhere to be seen from outside
    context.cancel()
    with pytest.raises(InferenceServerException) as caught:
        answered.get()
    assert caught.value.status() == "StatusCode.CANCELLED"
    assert time.monotonic() - began < 1.5
    assert grpc.is_model_ready(sleeper)


# -- streams


def test_a_decoupled_model_answers_many_times_and_then_says_that_it_is_done(grpc: Any) -> None:
    answered = Answered()
    grpc.start_stream(answered)
    grpc.async_stream_infer("words", text("a b c"), request_id="42", enable_empty_final_response=True)
    results = [answered.get() for _ in range(4)]
    grpc.stop_stream()
    assert [word_of(result) for result in results[:3]] == ["a", "b", "c"]
    assert [int(result.as_numpy("index")[0]) for result in results[:3]] == [0, 1, 2]
    responses = [result.get_response() for result in results]
    assert {response.id for response in responses} == {"42"}
    assert [response.parameters["triton_final_response"].bool_param for response in responses] == [False] * 3 + [True]
    assert not responses[3].outputs


@pytest.mark.parametrize("encoding", [None, "gzip", "deflate"])
def test_an_ordinary_model_answers_each_request_of_a_stream_in_order(grpc: Any, encoding: str | None) -> None:
    answered = Answered()
    grpc.start_stream(answered, compression_algorithm=encoding, stream_timeout=WAIT_S)
    for number in range(20):
        grpc.async_stream_infer("scores", features(), request_id=str(number), parameters={"scale": number})
    results = [answered.get() for _ in range(20)]
    grpc.stop_stream()
    assert [result.get_response().id for result in results] == [str(number) for number in range(20)]
    assert [result.as_numpy("output-0")[0, 0] for result in results] == list(range(20))


def test_an_error_in_a_stream_is_one_answer_and_the_stream_goes_on(grpc: Any) -> None:
    answered = Answered()
    grpc.start_stream(answered)
    grpc.async_stream_infer("nobody", features())
    with pytest.raises(InferenceServerException, match='"nobody" is not found'):
        answered.get()
    grpc.async_stream_infer("scores", features())
    assert answered.get().as_numpy("output-0").tolist() == SCORES
    grpc.stop_stream()


def test_where_the_client_wants_it_an_error_ends_the_stream_with_its_status(grpc: Any) -> None:
    answered = Answered()
    grpc.start_stream(answered, headers={"triton_grpc_error": "true"})
    grpc.async_stream_infer("nobody", features())
    with pytest.raises(InferenceServerException, match='"nobody" is not found') as caught:
        answered.get()
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    grpc.stop_stream()


def test_stopping_a_stream_waits_for_its_answers(grpc: Any) -> None:
    answered = Answered()
    grpc.start_stream(answered)
    grpc.async_stream_infer("words", text("a b c", delay_ms=100))
    grpc.stop_stream()
    assert [word_of(answered.get()) for _ in range(3)] == ["a", "b", "c"]
    assert answered.is_empty()


def test_stopping_a_stream_with_cancellation_does_not_wait(grpc: Any) -> None:
    answered = Answered()
    grpc.start_stream(answered)
    grpc.async_stream_infer("words", text("a b c d e f g h", delay_ms=1000))
    assert word_of(answered.get()) == "a"
    began = time.monotonic()
    grpc.stop_stream(cancel_requests=True)
    assert time.monotonic() - began < 2
    with pytest.raises(InferenceServerException) as caught:
        answered.get()
    assert caught.value.status() == "StatusCode.CANCELLED"


async def of_both_models() -> AsyncIterator[dict[str, Any]]:
    yield {"model_name": "words", "inputs": text("a b"), "request_id": "1"}
    yield {"model_name": "scores", "inputs": features(), "request_id": "2"}
    yield {"model_name": "nobody", "inputs": features(), "request_id": "3"}


async def test_an_async_stream_has_the_answers_of_all_its_requests(platform: PlatformProcess) -> None:
    found: dict[str, list[Any]] = {"1": [], "2": []}
    errors = []
    async with tritonclient.grpc.aio.InferenceServerClient(platform.grpc) as client:
        async for result, error in client.stream_infer(of_both_models(), stream_timeout=WAIT_S):
            if error is not None:
                errors.append(error.message())
            else:
                found[result.get_response().id].append(result)
    assert [word_of(result) for result in found["1"]] == ["a", "b"]
    assert [result.as_numpy("output-0").tolist() for result in found["2"]] == [SCORES]
    assert len(errors) == 1
    assert '"nobody" is not found' in errors[0]


async def test_an_async_stream_is_cancelled(platform: PlatformProcess) -> None:
    async def slow() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "words", "inputs": text("a b c d e f g h", delay_ms=1000)}

    began = time.monotonic()
    async with tritonclient.grpc.aio.InferenceServerClient(platform.grpc) as client:
        answers = client.stream_infer(slow())
        result, error = await anext(answers)
        assert (word_of(result), error) == ("a", None)
        assert answers.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(answers)
    assert time.monotonic() - began < 4
