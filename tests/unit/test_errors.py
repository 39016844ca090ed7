# SPDX-License-Identifier: Apache-2.0
"""Promises of the error tree, for every class in it."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import grpc
import pytest

from modelyard import errors
from modelyard.errors import GrpcStatus, InvalidRequest, InvalidTensor, ModelyardError
from modelyard.protocol.errors import as_modelyard_error, encode_http, to_message

CLASSES = [
    item
    for name, item in vars(errors).items()
    if inspect.isclass(item) and issubclass(item, ModelyardError) and not name.startswith("_")
]
RAISED = [item for item in CLASSES if item is not ModelyardError]
ROW = re.compile(r"^[ │├└─]*(?P<name>\w+)\s+(?P<http>\d{3})\s+(?P<grpc>[A-Z_]+)", re.MULTILINE)
VALUES = {"problems": ("a: b", "c: d"), "limit": 5, "got": 7, "timeout_s": 1.5}


def make(kind: type[ModelyardError]) -> ModelyardError:
    """An instance with a different value for each constructor argument."""
    names = list(inspect.signature(kind).parameters)
    arguments: list[Any] = [
        f"the {name}" if kind is InvalidTensor else VALUES.get(name, f"the {name}") for name in names
    ]
    return kind(*arguments)


@pytest.mark.parametrize("kind", RAISED)
def test_an_error_survives_two_process_boundaries(kind: type[ModelyardError]) -> None:
    error = make(kind)
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))
    assert type(again) is kind
    assert (again.args, str(again), vars(again)) == (error.args, str(error), vars(error))


@pytest.mark.parametrize("kind", RAISED)
def test_the_sentence_has_every_argument(kind: type[ModelyardError]) -> None:
    error = make(kind)
    for value in vars(error).values():
        for piece in value if isinstance(value, tuple) else (value,):
            assert str(piece) in str(error)


@pytest.mark.parametrize("kind", RAISED)
def test_the_docstring_has_both_statuses(kind: type[ModelyardError]) -> None:
    rows = {row["name"]: (int(row["http"]), row["grpc"]) for row in ROW.finditer(errors.__doc__ or "")}
    assert rows[kind.__name__] == (kind.http_status, kind.grpc_status.name)


def test_the_docstring_has_no_class_that_is_gone() -> None:
    assert {row["name"] for row in ROW.finditer(errors.__doc__ or "")} == {kind.__name__ for kind in RAISED}


@pytest.mark.parametrize("kind", CLASSES)
def test_clients_faults_are_4xx_and_servers_5xx_on_both_edges(kind: type[ModelyardError]) -> None:
    servers = {GrpcStatus.INTERNAL, GrpcStatus.UNAVAILABLE, GrpcStatus.DEADLINE_EXCEEDED}
    if kind.grpc_status is GrpcStatus.UNIMPLEMENTED:
        assert kind.http_status in (404, 405, 415, 501)
    else:
        assert (kind.http_status >= 500) is (kind.grpc_status in servers)
    assert 400 <= kind.http_status < 600


@pytest.mark.parametrize("kind", CLASSES)
def test_codes_are_stable_words(kind: type[ModelyardError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)
    same = [other for other in RAISED if other.code == kind.code]
    assert len(same) == 1 or kind is ModelyardError


@pytest.mark.parametrize("status", GrpcStatus)
def test_grpc_numbers_are_grpcs(status: GrpcStatus) -> None:
    assert grpc.StatusCode[status.name].value[0] == status.value


@pytest.mark.parametrize("kind", RAISED)
def test_retry_after_is_sent_where_waiting_helps(kind: type[ModelyardError]) -> None:
    headers = dict(encode_http(make(kind)).headers)
    assert (b"retry-after" in headers) is (kind.http_status in (429, 503) and kind.retry_after_s is not None)
    assert kind.retry_after_s is None or kind.http_status in (429, 503)


def test_overloaded_and_not_ready_say_when_to_come_back() -> None:
    waits = {kind.code: kind.retry_after_s for kind in RAISED if kind.retry_after_s}
    assert {"overloaded", "model-not-ready"} <= waits.keys()


def test_a_strangers_exception_says_nothing_to_the_client() -> None:
    encoded = encode_http(as_modelyard_error(KeyError("/secret/path")))
    assert encoded.status == 500
    assert b"secret" not in encoded.body
    error = InvalidRequest("x")
    assert as_modelyard_error(error) is error


def test_a_message_is_valid_text_of_bounded_length() -> None:
    assert to_message(InvalidRequest("a\ud800b")) == "a?b"
    assert len(to_message(InvalidRequest("x" * 100_000))) < 2000


def test_an_invalid_tensor_reads_as_one_sentence() -> None:
    assert str(InvalidTensor('input "x"', "FP32 [-1,4]", "FP64 [2,3]")) == (
        'input "x": expected FP32 [-1,4], got FP64 [2,3]'
    )
