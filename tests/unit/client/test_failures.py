# SPDX-License-Identifier: Apache-2.0
"""Errors come back from the wire as what they were."""

from __future__ import annotations

import pickle

import pytest

from modelyard import errors
from modelyard.client.failures import ApiError, PlatformUnreachable, to_error
from modelyard.errors import ModelyardError

EXAMPLES: list[ModelyardError] = [
    errors.InvalidRequest('unknown input "y": expected "x"'),
    errors.InvalidTensor('input "x"', "FP32 [-1,4]", "FP64 [2,3]"),
    errors.SignatureNotFound("x", "iris", '"serving_default"'),
    errors.InvalidConfig(("models[0].uri: x", "models[1].uri: y")),
    errors.Unauthenticated("no token"),
    errors.Forbidden("not yours"),
    errors.ModelNotFound("iris"),
    errors.ModelNotFound("iris", "7"),
    errors.RouteNotFound("no route /x"),
    errors.MethodNotAllowed("use POST"),
    errors.Conflict("changed meanwhile"),
    errors.TooLarge("request body", 10, 12),
    errors.TooLarge("batch", 10, None, "rows"),
    errors.UnsupportedMediaType("text/html"),
    errors.Overloaded("queue full"),
    errors.ModelFailed("iris", "ValueError: bad: thing"),
    errors.InternalError("see the log"),
    errors.Unavailable("the controller is away"),
    errors.Unsupported("cannot explain"),
    errors.ModelNotReady("iris", "failed: no\nfile"),
    errors.DeadlineExceeded(0.25),
    errors.DeadlineExceeded(60.0, "the model goes on loading"),
    errors.ModelLoadError("needs scikit-learn 1.5"),
]


def _body(error: ModelyardError) -> dict[str, object]:
    problems = {"problems": list(error.problems)} if isinstance(error, errors.InvalidConfig) else {}
    return {"error": str(error), "code": error.code, **problems}


def _leaves(cls: type[ModelyardError]) -> set[type[ModelyardError]]:
    found = {cls} if "code" in vars(cls) and cls is not ModelyardError else set()
    return found.union(*map(_leaves, cls.__subclasses__()))


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_error_comes_back_with_its_arguments(error: ModelyardError) -> None:
    back = to_error(error.http_status, _body(error))
    assert (type(back), back.args, str(back)) == (type(error), error.args, str(error))


def test_every_error_of_the_tree_has_an_example() -> None:
    ours = {cls for cls in _leaves(ModelyardError) if cls.__module__ == "modelyard.errors"}
    assert ours == {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_without_a_code_the_status_decides_and_the_sentence_stays(error: ModelyardError) -> None:
    back = to_error(error.http_status, {"error": str(error)})
    assert str(back) == str(error)
    assert back.http_status == error.http_status


@pytest.mark.parametrize(
    "error",
    [
        errors.Unavailable("the platform's controller does not answer: TimeoutError"),
        errors.Unavailable("the catalog's database failed: connection refused"),
        errors.ModelLoadError("needs scikit-learn 1.5"),
        errors.ModelNotReady("iris", "loading"),
    ],
    ids=str,
)
def test_the_sentences_of_one_status_are_told_apart(error: ModelyardError) -> None:
    back = to_error(503, {"error": str(error)})
    assert (type(back), back.args) == (type(error), error.args)


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (503, "<html>"),
        (418, {"error": "teapot"}),
        (404, {"error": {"message": "x"}}),
        (413, {"error": "big"}),
        (500, []),
    ],
)
def test_anything_else_keeps_its_status(status: int, document: object) -> None:
    back = to_error(status, document)
    assert isinstance(back, ApiError)
    assert back.status == status


@pytest.mark.parametrize("error", [ApiError(502, "bad gateway"), PlatformUnreachable("http://x", "refused")])
def test_the_clients_own_errors_pickle(error: ModelyardError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.args, str(back)) == (type(error), error.args, str(error))
