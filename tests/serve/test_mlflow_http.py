# SPDX-License-Identifier: Apache-2.0
"""MLflow's scoring routes below /mlflow, over a model in this process that no MLflow is in."""

from __future__ import annotations

import json

import pytest

from modelyard import errors
from modelyard.errors import ModelyardError
from modelyard.protocol.mlflow import decode_invocations, encode_error

RECORDS = {"dataframe_records": [{"a": 1, "b": 2, "c": 3, "d": 4}, {"d": 8, "c": 7, "b": 6, "a": 5}]}
WHERE = ["", "/versions/1", "/versions/2", "/versions/stable", "/labels/stable"]
JSON = {"content-type": "application/json"}


@pytest.fixture
def ask(make_edge, fake):
    async def post(body, path="/mlflow/iris/invocations", headers=None, **options):
        edge = make_edge(fake(fail_on_value=13.0, refuse_value=14.0, **options))
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        return await edge.post(path, content, headers if headers is not None else JSON)

    return post


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("slash", ["", "/"])
async def test_invocations_are_answered_under_every_version_and_label(ask, where, slash):
    reply = await ask(RECORDS, f"/mlflow/iris{where}/invocations{slash}")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json() == {"predictions": [10, 26]}


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["d", "c", "b", "a"], "index": [7, 8], "data": [[4, 3, 2, 1], [8, 7, 6, 5]]}},
        {"dataframe_split": {"data": [[1, 2, 3, 4], [5, 6, 7, 8]]}},
        {"dataframe_records": [{**record, "more": "x"} for record in RECORDS["dataframe_records"]]},
        {"instances": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        {"instances": RECORDS["dataframe_records"]},
        {"inputs": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        {"inputs": RECORDS["dataframe_records"]},
        {"inputs": {"a": [1, 5], "b": [2, 6], "c": [3, 7], "d": [4, 8]}},
        {"inputs": {"input-0": [[1, 2, 3, 4], [5, 6, 7, 8]]}},
    ],
)
async def test_every_form_of_the_same_rows_is_answered_alike(ask, body):
    assert (await ask(body)).json() == {"predictions": [10, 26]}


@pytest.mark.parametrize("kind", ["text/csv", "text/csv; charset=utf-8", 'Text/CSV;charset="UTF-8"'])
async def test_csv_is_a_table(ask, kind):
    table = '\ufeffd,"c",b,a,more\r\n4,3,2,1,x\r\n8,7.0,6e0,5,"y,\nz"\r\n'
    assert (await ask(table, headers={"content-type": kind})).json() == {"predictions": [10, 26]}


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": "application/json; charset=UTF-8"}],
)
async def test_json_is_read_whoever_sends_it(ask, headers):
    assert (await ask(RECORDS, headers=headers)).json() == {"predictions": [10, 26]}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("text/plain", "only supports the following content types: Types: ['text/csv', 'application/json']"),
        ("application/vnd.apache.parquet", "only supports the following content types"),
        ("text/csv; charset=latin-1", "The scoring server only supports UTF-8"),
        ("application/json; format=pandas-split", "Unrecognized content type parameters: format"),
    ],
)
async def test_another_type_is_415_in_plain_text(ask, kind, text):
    reply = await ask("a\n1\n", headers={"content-type": kind})
    assert (reply.status_code, reply.headers["content-type"]) == (415, "text/plain; charset=utf-8")
    assert text in reply.text


FAULTS = [
    ("{", 400, "BAD_REQUEST", "not JSON"),
    ([], 400, "BAD_REQUEST", "expected an object, got a list"),
    ({"x": 1}, 400, "BAD_REQUEST", 'expected exactly one of "dataframe_split"'),
    ({"inputs": [[1, 2]]}, 400, "INVALID_PARAMETER_VALUE", "expected FP64 [-1,4]"),
    ({"dataframe_records": [{"a": 1}]}, 400, "BAD_REQUEST", 'missing columns "b", "c", "d"'),
    ({"dataframe_records": []}, 400, "BAD_REQUEST", "at least one record"),
    ({"dataframe_records": [{"a": "1", "b": 1, "c": 1, "d": 1}]}, 400, "INVALID_PARAMETER_VALUE", '"a"[0]'),
    ({"dataframe_split": {"columns": ["a", "a"], "data": []}}, 400, "BAD_REQUEST", 'twice: "a"'),
    ({"dataframe_split": {"columns": [["a"]], "data": []}}, 400, "BAD_REQUEST", "expected names"),
    ({"dataframe_split": {"data": [[1], [1, 2]]}}, 400, "INVALID_PARAMETER_VALUE", "data[1]: expected a list of 1"),
    ({**RECORDS, "params": [1]}, 400, "BAD_REQUEST", "params: expected an object"),
    ({"inputs": [[14, 0, 0, 0]]}, 400, "BAD_REQUEST", "14 is not a value"),
    ({"inputs": [[13, 0, 0, 0]]}, 500, "INTERNAL_ERROR", "ArithmeticError"),
]


@pytest.mark.parametrize(("body", "status", "code", "text"), FAULTS)
async def test_an_error_is_mlflows_object(ask, body, status, code, text):
    reply = await ask(body)
    assert (reply.status_code, reply.json()["error_code"]) == (status, code)
    assert text in reply.json()["message"]
    known = {"sqlstate", "error_class"} if status == 400 else set()
    assert reply.json().keys() == {"error_code", "message", *known}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("", "expected a line with the names"),
        ("a,b\n1", "CSV row [0]: expected a list of 2 values, got 1"),
        ('a\n"1', "not CSV"),
        ("a,b,c,d\n1,2,3,x\n", '"d"[0]: expected FP64'),
        ("a,a\n1,2\n", "twice"),
    ],
)
async def test_what_is_no_table_is_refused(ask, table, text):
    reply = await ask(table, headers={"content-type": "text/csv"})
    assert reply.status_code == 400
    assert text in reply.json()["message"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("path", "text"), [("ping", "\n"), ("health", "\n"), ("version", "3.17.2")])
async def test_health_and_version_are_mlflows(make_edge, where, path, text):
    reply = await make_edge().client.get(f"/mlflow/iris{where}/{path}")
    assert (reply.status_code, reply.text, reply.headers["content-type"]) == (200, text, "application/json")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/mlflow/nope/ping", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("/mlflow/iris/versions/9/health", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("/mlflow/nope/version", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("/mlflow/iris/nope", 404, "ENDPOINT_NOT_FOUND"),
        ("/mlflow/late/ping", 503, "TEMPORARILY_UNAVAILABLE"),
        ("/mlflow/bad/health", 503, "TEMPORARILY_UNAVAILABLE"),
        ("/mlflow/iris/invocations", 405, "BAD_REQUEST"),
    ],
)
async def test_what_is_not_there_is_told_in_mlflows_words(make_edge, path, status, code):
    reply = await make_edge().client.get(path)
    assert (reply.status_code, reply.json()["error_code"]) == (status, code)
    assert ("retry-after" in reply.headers) == (status == 503)


def test_params_are_the_requests_parameters(fake):
    body = {**RECORDS, "params": {"a": 1, "b": [1, "x"], "c": {"d": None}, "e": None, "f": True}}
    decoded = decode_invocations(json.dumps(body).encode(), "application/json", fake().signature)
    assert dict(decoded.parameters) == {"a": 1, "b": '[1,"x"]', "c": '{"d":null}', "f": True}


def test_every_error_has_a_code_of_mlflow():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelyardError)]
    assert len(kinds) > 10
    for kind in kinds:
        arguments = {
            "InvalidTensor": 3,
            "SignatureNotFound": 3,
            "ModelNotReady": 2,
            "ModelFailed": 2,
            "TooLarge": 2,
        }.get(kind.__name__, 1)
        error = kind(1.0) if kind.__name__ == "DeadlineExceeded" else kind(*["x"] * arguments)
        assert encode_error(error).status == kind.http_status


async def test_a_body_over_the_limit_is_413(ask):
    reply = await ask("x" * 5000, headers={"content-type": "text/csv"})
    assert (reply.status_code, reply.json()["error_code"]) == (413, "BAD_REQUEST")
