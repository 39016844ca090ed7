# SPDX-License-Identifier: Apache-2.0
"""Several models on a Triton that was started for them: what they say of themselves, and their answers."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import numpy as np
import pytest

from modelyard.errors import DeadlineExceeded, InvalidRequest, ModelNotReady, Overloaded
from modelyard.model import Model, describe, load_model
from modelyard.signature import TensorSpec
from modelyard_deployments._triton_calls import TritonError

Run = Callable[[Any], Any]


def texts(*values: bytes) -> Any:
    return np.array(values, dtype=object)


def ask(host: Model, name: str, inputs: dict[str, Any], *outputs: str, **parameters: Any) -> Any:
    model = host.members[name]
    names = outputs or tuple(spec.name for spec in model.signature.outputs)
    return model.predict(model.signature.bind(inputs), names, parameters)


async def collect(model: Model, inputs: dict[str, Any], into: list[Any]) -> None:
    names = tuple(spec.name for spec in model.signature.outputs)
    async for answer in model.stream(model.signature.bind(inputs), names, {}):
        into.append({name: array.tolist() for name, array in answer.items()})  # noqa: PERF401  # before it may raise


# -- what it has


def test_models_that_are_ready_are_published(host: Model) -> None:
    description = describe(host)
    assert description.publishes_members
    expected = {"broken", "chained", "classes", "echo", "queued", "seen", "slow", "stream", "sums", "text"}
    assert set(description.members) == expected


def test_signatures_are_tritons(host: Model) -> None:
    sums = host.members["sums"].signature
    assert sums.inputs == (TensorSpec("INPUT", "FP32", (-1, 4)),)
    assert sums.outputs == (TensorSpec("OUTPUT", "FP32", (-1, 4)), TensorSpec("SUM", "FP32", (-1, 1)))
    assert sums.batch_axis
    text = host.members["text"].signature
    assert [spec.optional for spec in text.inputs] == [False, True]
    assert not text.batch_axis
    assert host.members["stream"].signature.decoupled


def test_names_of_classes_come_from_label_files(host: Model) -> None:
    labels = host.members["classes"].signature.labels
    assert labels["PROBS"] == ("cat", "dog", "bird")
    assert "BARE" not in labels


def test_the_repository_itself_names_its_models_and_what_failed(host: Model, run: Run) -> None:
    assert (host.signature.inputs, host.signature.outputs) == ((), ())
    with pytest.raises(InvalidRequest) as caught:
        run(host.predict({}, (), {}))
    message = str(caught.value)
    assert '"broken", "chained", "classes"' in message
    assert '"unloadable" failed: Internal: ValueError: cannot be loaded' in message
    assert "\"rubbish\" failed: Poll failed for model directory 'rubbish'" in message
    assert "/" not in message.replace("config.pbtxt", "")


# -- answers


def test_more_rows_than_triton_takes_at_once_are_answered_in_order(host: Model, run: Run) -> None:
    rows = np.arange(4 * 37, dtype=np.float32).reshape(37, 4)  # its max_batch_size is 8
    answer = run(ask(host, "sums", {"INPUT": rows}))
    assert np.array_equal(answer["OUTPUT"], rows * 2)
    assert np.array_equal(answer["SUM"], rows.sum(axis=1, keepdims=True))


def test_only_requested_outputs_are_sent(host: Model, run: Run) -> None:
    assert list(run(ask(host, "sums", {"INPUT": np.ones((1, 4), np.float32)}, "SUM"))) == ["SUM"]


def test_calls_run_at_once_and_each_gets_its_own_rows(host: Model, run: Run) -> None:
    async def many() -> Any:
        rows = [np.full((1 + index % 3, 4), index, np.float32) for index in range(200)]
        return rows, await asyncio.gather(*(ask(host, "sums", {"INPUT": one}) for one in rows))

    for sent, answer in zip(*run(many()), strict=True):
        assert np.array_equal(answer["OUTPUT"], sent * 2)


def test_texts_travel_both_ways(host: Model, run: Run) -> None:
    answer = run(ask(host, "text", {"text_input": texts("ä\0".encode()), "suffix": texts("ß".encode())}))
    assert answer["text_output"].tolist() == ["Ä\0ß".encode()]


def test_an_ensemble_answers(host: Model, run: Run) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert np.array_equal(run(ask(host, "chained", {"X": rows}))["Y"], rows.sum(axis=1, keepdims=True) * 2)


def test_parameters_reach_the_model(host: Model, run: Run) -> None:
    given = {"text": "ä", "number": -7, "ratio": 0.5, "flag": True}
    answer = run(ask(host, "seen", {"number": np.array([[1]])}, "parameters_seen", **given))
    assert json.loads(answer["parameters_seen"][0, 0])["parameters"] == given


def test_a_parameter_that_this_triton_does_not_take_is_refused_in_its_words(host: Model, run: Run) -> None:
    with pytest.raises(InvalidRequest, match="invalid value type for 'mine' parameter, expected int64_param"):
        run(ask(host, "seen", {"number": np.array([[1]])}, mine=2**63))


# -- errors


def test_what_triton_refuses_is_the_clients_mistake(host: Model, run: Run) -> None:
    model = host.members["sums"]
    with pytest.raises(InvalidRequest, match="unexpected shape for input 'INPUT'"):
        run(model.predict({"INPUT": np.ones((1, 3), np.float32)}, ("SUM",), {}))
    with pytest.raises(InvalidRequest, match="unexpected inference output 'NOSUCH'"):
        run(model.predict({"INPUT": np.ones((1, 4), np.float32)}, ("NOSUCH",), {}))
    with pytest.raises(InvalidRequest, match="the value is 3"):
        run(ask(host, "broken", {"INPUT": np.array([3], np.int32)}))


@pytest.mark.parametrize(("value", "reason"), [(1, "ValueError: the value is 1"), (2, "the value is 2")])
def test_a_model_that_raises_has_failed(host: Model, run: Run, value: int, reason: str) -> None:
    with pytest.raises(TritonError, match=reason) as caught:
        run(ask(host, "broken", {"INPUT": np.array([value], np.int32)}))
    assert "At:" not in str(caught.value)


def test_one_that_says_not_found_is_not_ready(host: Model, run: Run) -> None:
    with pytest.raises(ModelNotReady, match="the value is 7"):
        run(ask(host, "broken", {"INPUT": np.array([7], np.int32)}))


def test_a_full_queue_is_overload(host: Model, run: Run) -> None:
    async def many() -> Any:
        calls = (ask(host, "slow", {"delay_ms": np.array([300], np.int32)}) for _ in range(12))
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = run(many())  # it has two instances and room for two more
    refused = [one for one in answers if isinstance(one, Overloaded)]
    assert refused
    assert 'model "slow": its queue in Triton is full' in str(refused[0])
    assert len(refused) + sum(isinstance(one, dict) for one in answers) == 12


def test_a_call_may_have_a_limit(repository: Any, server: str, run: Run) -> None:
    options = {"server": server, "models": ["slow"], "timeout_s": 0.3}
    model = load_model("triton", repository, options)
    try:
        assert list(model.members) == ["slow"]
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
            run(model.predict(model.signature.bind({"delay_ms": np.array([5000], np.int32)}), ("delay_ms_was",), {}))
    finally:
        model.close()


# -- streams


def test_a_decoupled_model_streams(host: Model, run: Run) -> None:
    answers: list[Any] = []
    run(collect(host.members["stream"], {"text_input": texts(b"hi"), "count": np.array([3], np.int32)}, answers))
    assert [answer["text_output"] for answer in answers] == [[b"hi-0"], [b"hi-1"], [b"hi-2"]]


def test_a_stream_may_be_empty(host: Model, run: Run) -> None:
    answers: list[Any] = []
    run(collect(host.members["stream"], {"text_input": texts(b"hi"), "count": np.array([0], np.int32)}, answers))
    assert answers == []


def test_an_error_ends_the_stream_after_its_first_answers(host: Model, run: Run) -> None:
    answers: list[Any] = []
    inputs = {"text_input": texts(b"hi"), "count": np.array([3], np.int32), "fail_at": np.array([1], np.int32)}
    with pytest.raises(TritonError, match="failed at 1"):
        run(collect(host.members["stream"], inputs, answers))
    assert len(answers) == 1
    run(ask(host, "sums", {"INPUT": np.ones((1, 4), np.float32)}))  # and nothing more


def test_answers_come_as_they_are_made_and_a_stream_that_is_left_is_cancelled(host: Model, run: Run) -> None:
    model = host.members["stream"]
    inputs = {"text_input": texts(b"hi"), "count": np.array([50], np.int32), "delay_ms": np.array([100], np.int32)}

    async def read_one() -> Any:
        answers = cast(AsyncGenerator[Any], model.stream(model.signature.bind(inputs), ("index",), {}))
        first = await anext(answers)
        await answers.aclose()
        (leaving,) = cast(Any, model)._connection._leaving
        await asyncio.wait_for(leaving, 2)
        return first

    assert run(asyncio.wait_for(read_one(), 5))["index"].tolist() == [0]


def test_leaving_streams_that_are_about_to_end_leaves_the_server_alone(host: Model, run: Run) -> None:
    inputs = {"text_input": texts(b"hi"), "count": np.array([3], np.int32), "fail_at": np.array([1], np.int32)}

    async def fail_often() -> int:
        failed = 0
        for _ in range(200):
            try:
                await collect(host.members["stream"], inputs, [])
            except TritonError:
                failed += 1
        return failed

    assert run(fail_often()) == 200
