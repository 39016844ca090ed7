# SPDX-License-Identifier: Apache-2.0
"""The arguments of ``infer`` in Triton's four clients, each by its effect."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from answers import Answers, Array
from platform_process import PlatformProcess
from shared_platform.conformance.triton import KINDS, ask, each_client, to_inputs
from tritonclient.utils import InferenceServerException

each_http = pytest.mark.parametrize("kind", ["http", "http-aio"])
each_grpc = pytest.mark.parametrize("kind", ["grpc", "grpc-aio"])
each_encoding = pytest.mark.parametrize("encoding", ["gzip", "deflate"])

FEATURES = np.array([[1.0, 2.0, 3.0, 4.0]])
SCORES = [[1.0, 4.0, 13.0]]


@pytest.fixture
def many(answers: dict[str, Answers]) -> tuple[Array, Array]:
    """Rows whose request and reply are large enough to be worth compressing, and their answers."""
    known = answers["iris-lightgbm"]
    return np.repeat(known.inputs["input-0"], 2000, axis=0), np.repeat(known.default, 2000, axis=0)


@each_encoding
@each_http
def test_bodies_are_compressed_both_ways(
    kind: str, platform: PlatformProcess, many: tuple[Array, Array], encoding: str
) -> None:
    compression = {"request_compression_algorithm": encoding, "response_compression_algorithm": encoding}
    result = ask(kind, platform, "infer", "iris-lightgbm", to_inputs(kind, {"input-0": many[0]}), **compression)
    np.testing.assert_allclose(result.as_numpy("output-0"), many[1])


@each_encoding
@each_grpc
def test_messages_are_compressed(
    kind: str, platform: PlatformProcess, many: tuple[Array, Array], encoding: str
) -> None:
    inputs = to_inputs(kind, {"input-0": many[0]})
    result = ask(kind, platform, "infer", "iris-lightgbm", inputs, compression_algorithm=encoding)
    np.testing.assert_allclose(result.as_numpy("output-0"), many[1])


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
@each_http
def test_tensors_travel_as_json_or_binary(
    kind: str, platform: PlatformProcess, binary_in: bool, binary_out: bool
) -> None:
    tensor = tritonclient.http.InferInput("features", [1, 4], "FP64")
    tensor.set_data_from_numpy(FEATURES, binary_data=binary_in)
    outputs = [tritonclient.http.InferRequestedOutput("output-0", binary_data=binary_out)]
    result = ask(kind, platform, "infer", "scores", [tensor], outputs=outputs)
    assert result.as_numpy("output-0").tolist() == SCORES
    assert ("data" in result.get_output("output-0")) is not binary_out


@each_client
def test_parameters_reach_the_model(kind: str, platform: PlatformProcess) -> None:
    inputs = to_inputs(kind, {"features": FEATURES})
    for scale in (2, "3", 0.5):
        result = ask(kind, platform, "infer", "scores", inputs, parameters={"scale": scale, "other": True})
        assert result.as_numpy("output-0").tolist() == [[value * float(scale) for value in SCORES[0]]]


@each_client
def test_class_count_asks_for_the_best_classes(kind: str, platform: PlatformProcess) -> None:
    module: Any = tritonclient.grpc if kind.startswith("grpc") else tritonclient.http
    outputs = [module.InferRequestedOutput("output-0", class_count=2)]
    result = ask(kind, platform, "infer", "scores", to_inputs(kind, {"features": FEATURES}), outputs=outputs)
    best = [[text.split(b":") for text in row] for row in result.as_numpy("output-0")]
    assert [[(float(value), int(place), label) for value, place, label in row] for row in best] == [
        [(13.0, 2, b"bird"), (4.0, 1, b"dog")]
    ]


@each_client
def test_a_priority_is_taken(kind: str, platform: PlatformProcess) -> None:
    result = ask(kind, platform, "infer", "scores", to_inputs(kind, {"features": FEATURES}), priority=1)
    assert result.as_numpy("output-0").tolist() == SCORES


@each_client
def test_a_timeout_that_has_passed_is_the_deadlines_error(kind: str, platform: PlatformProcess) -> None:
    inputs = to_inputs(kind, {"features": FEATURES})
    assert ask(kind, platform, "infer", "scores", inputs, timeout=20_000_000).as_numpy("output-0").tolist() == SCORES
    with pytest.raises(InferenceServerException) as caught:
        ask(kind, platform, "infer", "scores", inputs, timeout=1)
    assert caught.value.status() == ("StatusCode.DEADLINE_EXCEEDED" if kind.startswith("grpc") else "504")


@each_grpc
def test_the_calls_own_deadline_counts(kind: str, platform: PlatformProcess) -> None:
    inputs = to_inputs(kind, {"features": FEATURES})
    assert ask(kind, platform, "infer", "scores", inputs, client_timeout=20).as_numpy("output-0").tolist() == SCORES
    with pytest.raises(InferenceServerException) as caught:
        ask(kind, platform, "infer", "scores", inputs, client_timeout=-1)  # over before it begins
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


@each_http
def test_query_parameters_are_no_part_of_the_path(kind: str, platform: PlatformProcess) -> None:
    query = {"tenant": "a b", "number": 7}
    inputs = to_inputs(kind, {"features": FEATURES})
    assert ask(kind, platform, "infer", "scores", inputs, query_params=query).as_numpy("output-0").tolist() == SCORES
    assert ask(kind, platform, "is_model_ready", "scores", query_params=query)
    assert ask(kind, platform, "get_model_metadata", "scores", query_params=query)["name"] == "scores"


@each_http
def test_headers_reach_the_server(kind: str, platform: PlatformProcess) -> None:
    inputs = to_inputs(kind, {"features": FEATURES})
    with pytest.raises(InferenceServerException, match="x-request-timeout-ms"):
        ask(kind, platform, "infer", "scores", inputs, headers={"x-request-timeout-ms": "nonsense"})


@each_grpc
def test_metadata_beside_a_call_is_taken(kind: str, platform: PlatformProcess) -> None:
    inputs = to_inputs(kind, {"features": FEATURES})
    result = ask(kind, platform, "infer", "scores", inputs, headers={"x-request-id": "mine-7", "tenant": "a"})
    assert result.as_numpy("output-0").tolist() == SCORES


@pytest.mark.parametrize("sequence_id", [7, "seven"])
@each_client
def test_a_model_without_state_answers_requests_of_a_sequence(
    kind: str, platform: PlatformProcess, sequence_id: int | str
) -> None:
    inputs = to_inputs(kind, {"features": FEATURES})
    for start, end in ((True, False), (False, False), (False, True)):
        sequence = {"sequence_id": sequence_id, "sequence_start": start, "sequence_end": end}
        assert ask(kind, platform, "infer", "scores", inputs, **sequence).as_numpy("output-0").tolist() == SCORES


@pytest.mark.parametrize("encoding", [None, "gzip", "deflate"])
@each_http
def test_a_request_made_by_the_client_may_travel_by_another(
    kind: str, platform: PlatformProcess, http: httpx.Client, encoding: str | None
) -> None:
    """``generate_request_body`` and ``parse_response_body``: for those who have a transport of their own."""
    maker = KINDS[kind].InferenceServerClient
    body, json_length = maker.generate_request_body(to_inputs(kind, {"features": FEATURES}), request_id="42")
    headers = {"Inference-Header-Content-Length": str(json_length), "accept-encoding": encoding or "identity"}
    with http.stream("POST", "/v2/models/scores/infer", content=bytes(body), headers=headers) as reply:
        raw = b"".join(reply.iter_raw())
    result = maker.parse_response_body(
        raw,
        header_length=int(reply.headers["inference-header-content-length"]),
        content_encoding=reply.headers.get("content-encoding"),
    )
    assert result.get_response()["id"] == "42"
    assert result.as_numpy("output-0").tolist() == SCORES
