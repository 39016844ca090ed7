# SPDX-License-Identifier: Apache-2.0
"""Our messages of TensorFlow Serving against the published ones: names, numbers and types are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pool

from modelyard import protos
from modelyard.protos import tensorflow_error_pb2, tensorflow_pb2, tensorflow_serving_pb2

pytest.importorskip("tensorflow_serving")
pytest.importorskip("tensorflow")
from tensorflow.core.example import example_pb2
from tensorflow.core.protobuf import error_codes_pb2, saved_model_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2,
)

FILES = [module.DESCRIPTOR for module in (tensorflow_error_pb2, tensorflow_pb2, tensorflow_serving_pb2)]
PUBLISHED = (
    example_pb2,
    error_codes_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2,
    saved_model_pb2,
)
"""Importing them puts all messages and services that there are into the pool of the process."""


def _with_nested(messages: Any) -> Iterator[Any]:
    for message in messages:
        yield message
        yield from _with_nested(message.nested_types)


MESSAGES = [one for file in FILES for one in _with_nested(file.message_types_by_name.values())]
ENUMS = [one for file in FILES for one in file.enum_types_by_name.values()]
ENUMS += [one for message in MESSAGES for one in message.enum_types]
SERVICES = [one for file in FILES for one in file.services_by_name.values()]
THEIRS = descriptor_pool.Default()


def _describe(field: Any) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    # An `optional` field is a one-of with itself alone, whose name the compiler makes.
    group = oneof.name if oneof is not None and len(oneof.fields) > 1 else ""
    return field.name, field.type, field.is_repeated, kind.full_name if kind else "", group


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.full_name)
def test_each_field_is_the_published_one(message: Any) -> None:
    published = {field.number: _describe(field) for field in THEIRS.FindMessageTypeByName(message.full_name).fields}
    ours = {field.number: _describe(field) for field in message.fields}
    assert ours == {number: published[number] for number in ours}
    assert message.GetOptions().map_entry is THEIRS.FindMessageTypeByName(message.full_name).GetOptions().map_entry


WHOLE = [one for one in MESSAGES if one.full_name.startswith("tensorflow.serving.")]


@pytest.mark.parametrize("message", WHOLE, ids=lambda message: message.full_name)
def test_no_field_of_the_serving_api_is_left_out(message: Any) -> None:
    published = {field.name for field in THEIRS.FindMessageTypeByName(message.full_name).fields}
    left_out = {"tensorflow.serving.PredictionLog": {"session_run_log"}}
    assert published - {field.name for field in message.fields} == left_out.get(message.full_name, set())


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.full_name)
def test_each_value_is_the_published_one(enum: Any) -> None:
    published = {value.name: value.number for value in THEIRS.FindEnumTypeByName(enum.full_name).values}
    ours = {value.name: value.number for value in enum.values}
    assert ours == {name: published[name] for name in ours}


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.full_name)
def test_the_services_have_the_published_methods(service: Any) -> None:
    def describe(found: Any) -> set[tuple[str, ...]]:
        return {(one.name, one.input_type.full_name, one.output_type.full_name) for one in found.methods}

    assert describe(service) == describe(THEIRS.FindServiceByName(service.full_name))


def test_there_is_something_to_compare() -> None:
    assert (len(MESSAGES) > 60, len(SERVICES)) == (True, 2)


def test_a_process_with_tensorflow_keeps_tensorflows_messages() -> None:
    assert not protos.publish()
    assert THEIRS.FindMessageTypeByName("tensorflow.TensorProto").file.name.startswith("tensorflow/core/")


def test_bytes_go_both_ways() -> None:
    theirs = predict_pb2.PredictRequest()
    theirs.model_spec.name = "m"
    theirs.model_spec.version.value = 3
    theirs.inputs["x"].float_val.extend([1.5, 2.5])
    ours = tensorflow_serving_pb2.PredictRequest.FromString(theirs.SerializeToString())
    assert (ours.model_spec.version.value, list(ours.inputs["x"].float_val)) == (3, [1.5, 2.5])
    assert predict_pb2.PredictRequest.FromString(ours.SerializeToString()) == theirs
