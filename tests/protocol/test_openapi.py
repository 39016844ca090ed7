# SPDX-License-Identifier: Apache-2.0
"""The documents are valid OpenAPI, and the requests they show fit their own schemas and decode."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from modelyard.config import ModelSpec
from modelyard.errors import InvalidRequest, ModelyardError
from modelyard.inference import InferenceRequest
from modelyard.protocol import v1, v2
from modelyard.protocol.openapi import MAX_NAMES, OPERATIONS, Described, build_document, build_model_document
from modelyard.protocol.tfserving import predict
from modelyard.signature import SavedSignature, Signature, TensorSpec

URL = "http://host:8000"
SPEC = ModelSpec.model_json_schema(ref_template="#/components/schemas/{model}")
OUT = (TensorSpec("output-0", "FP64", (-1,)),)


def matrix(datatype: str = "FP64", width: int = 2, **more: Any) -> Signature:
    return Signature((TensorSpec("input-0", datatype, (-1, width)),), OUT, any_input_name=True, **more)


SIGNATURES = {
    "matrix": matrix(on_request=(TensorSpec("predict_proba", "FP64", (-1, 3)),)),
    "matrix with columns": matrix(columns=("a", "it's `b`|c")),
    "columns with a known row": matrix(columns=("a", "b"), example={"a": 7.0}),
    "texts": Signature((TensorSpec("x", "BYTES", (-1,)),), OUT, example={"x": "ein Text: Größe"}),
    "matrix of texts": matrix("BYTES", example={"input-0": ["north", "don't know"]}),
    "table": Signature(
        (TensorSpec("area", "FP64", (-1,)), TensorSpec("town", "BYTES", (-1,))),
        OUT,
        example={"area": 0.0, "town": "Ulm"},
    ),
    "small integers": matrix("UINT8"),
    "booleans": matrix("BOOL"),
    "half floats": matrix("FP16"),
    "brain floats": matrix("BF16"),
    "variable dimensions": Signature((TensorSpec("x", "FP32", (-1, -1, 3)),), (TensorSpec("y", "FP32", (-1, -1)),)),
    "no rows": Signature((TensorSpec("x", "INT64", (2, -1)),), (TensorSpec("y", "FP32", ()),), batch_axis=False),
    "one number": Signature((TensorSpec("x", "INT64", ()),), (TensorSpec("y", "FP32", ()),), batch_axis=False),
    "half floats come back": Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "BF16", (-1,)),)),
    "several outputs": Signature(
        (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "BYTES", (-1,)), TensorSpec("z", "BOOL", (-1, 2)))
    ),
}
SAVED = {
    "a SavedModel's": replace(matrix(), saved=SavedSignature("serving_default", "tensorflow/serving/predict")),
    "a SavedModel's with several inputs": Signature(
        (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("word", "BYTES", (-1,))), OUT, saved=SavedSignature("mine", "")
    ),
    "a SavedModel's without rows": Signature(
        (TensorSpec("x", "INT64", ()), TensorSpec("y", "FP32", (2,))),
        OUT,
        batch_axis=False,
        saved=SavedSignature("mine", ""),
    ),
}
SIGNATURES |= SAVED
LARGE = {
    "picture": Signature((TensorSpec("x", "FP32", (-1, 3, 224, 224)),), OUT),
    "half float picture": Signature((TensorSpec("x", "FP16", (-1, 3, 224, 224)),), OUT, exact_datatypes=True),
}


def decode_predict(body: bytes, signature: Signature) -> InferenceRequest:
    if signature.saved is None:
        return v1.decode_predict(body, signature)[0]
    return predict.decode_document(json.loads(body), True, signature)[0]


def describe(signature: Signature, version: str = "") -> dict[str, Any]:
    return build_model_document(Described("m", version, "3", "fake", signature), URL)


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in document["paths"].values():
        yield from (operation for method, operation in item.items() if method != "parameters")


def check_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(json.loads(json.dumps(document))).validate()


def validator(document: dict[str, Any], pointer: str) -> Draft202012Validator:
    """Of the schema at a place in the document, with its references."""
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    return Draft202012Validator(
        {"$ref": f"urn:document{pointer}"}, registry=Registry().with_resource("urn:document", resource)
    )


@pytest.mark.parametrize("count", [0, 2, MAX_NAMES + 1])
def test_the_document_is_valid_whatever_models_there_are(count: int) -> None:
    check_valid(build_document("1.0", [f"m{i}" for i in range(count)], URL, SPEC))


def test_a_model_without_tensors_is_described() -> None:
    check_valid(describe(Signature((), (), batch_axis=False)))


def test_a_few_models_are_listed_as_values_and_many_are_not() -> None:
    few, many = (build_document("1.0", [f"m{i}" for i in range(n)], URL, SPEC) for n in (MAX_NAMES, 1000))
    (model,) = few["paths"]["/v2/models/{model}/infer"]["parameters"]
    assert model["schema"]["enum"] == [f"m{i}" for i in range(MAX_NAMES)]
    assert "m999" not in json.dumps(many)
    assert few["servers"] == [{"url": URL}]


def test_every_error_is_described_with_its_code() -> None:
    document = build_document("1.0", [], URL, SPEC)
    waiting, found = list(ModelyardError.__subclasses__()), set()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__name__.startswith("_"):
            continue
        for schema in ("Error", "AdminError"):
            assert f"`{kind.code}`" in document["components"]["responses"][f"{schema}{kind.http_status}"]["description"]
        found.add(kind.code)
    assert len(found) > 10


def test_every_operation_may_fail_and_answers_json_then() -> None:
    document = build_document("1.0", [], URL, SPEC)
    for operation in operations(document):
        assert "500" in operation["responses"]
        assert "RequestId" in json.dumps(operation["parameters"])
    names = [operation["operationId"] for operation in operations(document)]
    assert len(set(names)) == len(names)


def test_the_table_names_each_route_once() -> None:
    routes = [(operation.method, path) for operation in OPERATIONS for path, _ in operation.routes()]
    assert len(set(routes)) == len(routes)


@pytest.mark.parametrize("name", SIGNATURES | LARGE)
@pytest.mark.parametrize("version", ["", "3"])
def test_the_document_of_a_model_is_valid_and_of_no_other(name: str, version: str) -> None:
    document = describe((SIGNATURES | LARGE)[name], version)
    check_valid(document)
    assert "{" not in "".join(document["paths"])
    infer = f"/v2/models/m{'/versions/3' if version else ''}/infer"
    assert infer in document["paths"]
    assert ("/v1/models/m:predict" in document["paths"]) == (not version)


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v1/models/m:predict"])
def test_the_request_shown_fits_its_schema_and_decodes_to_the_signature(name: str, path: str) -> None:
    signature = SIGNATURES[name]
    document = describe(signature)
    operation = document["paths"][path]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    schema = content["schema"]["$ref"]
    validator(document, schema).validate(content["example"])
    command = operation["x-codeSamples"][0]["source"]
    assert command in operation["description"]
    assert command in document["info"]["description"]
    words = shlex.split(command)
    assert words[:2] == ["curl", f"{URL}{path}"]
    body = words[words.index("-d") + 1].encode()
    assert json.loads(body) == content["example"]
    decoded = v2.decode_infer(body, None) if path.startswith("/v2") else decode_predict(body, signature)
    bound = signature.bind(decoded.inputs)
    assert not signature.batch_axis or {array.shape[0] for array in bound.values()} == {1}


def test_what_the_signature_knows_of_a_row_is_in_the_request() -> None:
    document = describe(SIGNATURES["columns with a known row"])
    v1_example, v2_example = (
        document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        for path in ("/v1/models/m:predict", "/v2/models/m/infer")
    )
    assert v1_example == {"instances": [{"a": 7.0, "b": 0.0}]}
    assert v2_example["inputs"][0]["data"] == [7.0, 0.0]


@pytest.mark.parametrize("name", LARGE)
def test_a_row_too_long_to_read_is_sent_as_raw_bytes(name: str) -> None:
    document = describe(LARGE[name])
    size = 3 * 224 * 224 * (4 if name == "picture" else 2)
    assert f"head -c {size} /dev/zero | curl {URL}/v2/models/m/infer " in document["info"]["description"]
    assert len(json.dumps(document)) < 60_000
    decoded = v2.decode_infer(bytes(size), 0, LARGE[name])
    assert LARGE[name].bind(decoded.inputs)["x"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [{"a": 1}]},
        {"instances": [{"a": 1, "b": 2, "c": 3}]},
        {"instances": [{"a": "x", "b": 1}]},
        {"instances": [[1]]},
        {"instances": []},
        {},
    ],
)
def test_what_the_schema_refuses_is_refused(body: dict[str, Any]) -> None:
    signature = SIGNATURES["columns with a known row"]
    assert not validator(describe(signature), "#/components/schemas/PredictRequest").is_valid(body)
    with pytest.raises(InvalidRequest):
        signature.bind(v1.decode_predict(json.dumps(body).encode(), signature)[0].inputs)


def test_explaining_is_described_where_the_model_can() -> None:
    explained = TensorSpec("why", "FP64", (-1, 2))
    document = describe(matrix(on_request=(explained,), explanations=("why",)))
    assert "/v1/models/m:explain" in document["paths"]
    assert "/v1/models/m:explain" not in describe(SIGNATURES["matrix"])["paths"]


@pytest.mark.parametrize(
    ("output", "paths"), [("scores", ["/v1/models/m:classify"]), ("outputs", ["/v1/models/m:regress"]), ("y", [])]
)
def test_examples_are_described_where_the_signature_takes_them(output: str, paths: list[str]) -> None:
    signature = Signature((TensorSpec("inputs", "BYTES", (-1,)),), (TensorSpec(output, "FP32", (-1, 1)),))
    document = describe(replace(signature, saved=SavedSignature("serving_default", "tensorflow/serving/predict")))
    check_valid(document)
    assert [path for path in document["paths"] if path.endswith((":classify", ":regress"))] == paths
    assert not any(path.endswith((":classify", ":regress")) for path in describe(signature)["paths"])
