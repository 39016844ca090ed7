# SPDX-License-Identifier: Apache-2.0
"""Triton's four clients, unmodified and with their defaults: health, metadata and the libraries' own answers."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tritonclient.http
from answers import HOUSES, Answers
from platform_process import PlatformProcess
from shared_platform.conformance.triton import KINDS, ask, each_client, each_model, metadata, to_inputs, to_outputs
from tritonclient.utils import np_to_triton_dtype


@each_client
def test_server_is_live_and_ready(kind: str, platform: PlatformProcess) -> None:
    assert ask(kind, platform, "is_server_live")
    assert ask(kind, platform, "is_server_ready")


@each_client
def test_server_metadata(kind: str, platform: PlatformProcess) -> None:
    as_json = {"as_json": True} if kind.startswith("grpc") else {}
    found = ask(kind, platform, "get_server_metadata", **as_json)
    assert found["name"] == "modelyard"
    assert "binary_tensor_data" in found["extensions"]


@each_model
@each_client
def test_model_is_ready_with_and_without_version(kind: str, platform: PlatformProcess, model: str) -> None:
    assert ask(kind, platform, "is_model_ready", model)
    assert ask(kind, platform, "is_model_ready", model, "1")


@each_model
@each_client
def test_metadata_has_the_models_inputs(
    kind: str, platform: PlatformProcess, model: str, answers: dict[str, Answers]
) -> None:
    found = metadata(kind, platform, model)
    assert found == metadata(kind, platform, model, "1")
    expected = [
        (name, np_to_triton_dtype(array.dtype), [-1, *array.shape[1:]]) for name, array in answers[model].inputs.items()
    ]
    assert [
        (item["name"], item["datatype"], [int(dim) for dim in item["shape"]]) for item in found["inputs"]
    ] == expected
    assert [item["name"] for item in found["outputs"]] == ["output-0"]


@pytest.mark.parametrize("version", ["", "1"])
@each_model
@each_client
def test_the_answer_is_the_librarys(
    kind: str, platform: PlatformProcess, model: str, version: str, answers: dict[str, Answers]
) -> None:
    inputs = to_inputs(kind, answers[model].inputs)
    result = ask(kind, platform, "infer", model, inputs, version, request_id="42")
    np.testing.assert_allclose(result.as_numpy("output-0"), answers[model].default, rtol=1e-6)
    response = result.get_response(as_json=True) if kind.startswith("grpc") else result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("42", model, "1")


@each_client
def test_requested_outputs_come_in_the_order_asked(
    kind: str, platform: PlatformProcess, answers: dict[str, Answers]
) -> None:
    known = answers["breast-cancer"]
    outputs = to_outputs(kind, "predict_proba", "predict")
    result = ask(kind, platform, "infer", "breast-cancer", to_inputs(kind, known.inputs), outputs=outputs)
    response = result.get_response(as_json=True) if kind.startswith("grpc") else result.get_response()
    assert [output["name"] for output in response["outputs"]] == ["predict_proba", "predict"]
    np.testing.assert_allclose(result.as_numpy("predict_proba"), known.proba)
    np.testing.assert_array_equal(result.as_numpy("predict"), known.default)


@pytest.mark.parametrize("model", ["iris-xgboost", "iris-lightgbm"])
@each_client
def test_boosted_models_have_probabilities_and_classes(
    kind: str, platform: PlatformProcess, model: str, answers: dict[str, Answers]
) -> None:
    known = answers[model]
    outputs = to_outputs(kind, "predict", "predict_proba")
    result = ask(kind, platform, "infer", model, to_inputs(kind, known.inputs), outputs=outputs)
    np.testing.assert_allclose(result.as_numpy("predict_proba"), known.proba, rtol=1e-6)
    np.testing.assert_array_equal(result.as_numpy("predict"), known.default.argmax(axis=1))


@each_client
def test_a_data_frame_travels_as_columns(kind: str, platform: PlatformProcess, answers: dict[str, Answers]) -> None:
    inputs = to_inputs(kind, frame_columns(HOUSES))
    result = ask(kind, platform, "infer", "housing", inputs, parameters={"content_type": "pd"})
    np.testing.assert_allclose(result.as_numpy("output-0"), answers["housing"].default)


@each_client
def test_columns_of_a_matrix_model_may_come_in_any_order(
    kind: str, platform: PlatformProcess, answers: dict[str, Answers], models: Any
) -> None:
    import joblib

    names = joblib.load(models / "breast-cancer" / "model.joblib").feature_names_in_
    frame = pd.DataFrame(answers["breast-cancer"].inputs["input-0"], columns=names)[reversed(names)]
    result = ask(kind, platform, "infer", "breast-cancer", to_inputs(kind, frame_columns(frame)))
    np.testing.assert_array_equal(result.as_numpy("output-0"), answers["breast-cancer"].default)


def frame_columns(frame: pd.DataFrame) -> dict[str, Any]:
    """One array a column; texts as objects, which is what Triton's client takes."""
    return {
        str(name): frame[name].to_numpy(object) if frame[name].dtype.kind == "O" else frame[name].to_numpy()
        for name in frame
    }


@each_client
def test_a_large_request_comes_back_whole(kind: str, platform: PlatformProcess, answers: dict[str, Answers]) -> None:
    known = answers["breast-cancer"]
    rows = np.repeat(known.inputs["input-0"], 1000, axis=0)
    result = ask(kind, platform, "infer", "breast-cancer", to_inputs(kind, {"input-0": rows}))
    np.testing.assert_array_equal(result.as_numpy("output-0"), np.repeat(known.default, 1000))


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_many_requests_in_flight_get_their_own_answers(
    kind: str, platform: PlatformProcess, answers: dict[str, Answers]
) -> None:
    rows, proba = answers["iris-xgboost"].inputs["input-0"], answers["iris-xgboost"].default

    async def one(client: Any, row: int) -> Any:
        result = await client.infer("iris-xgboost", to_inputs(kind, {"input-0": rows[row : row + 1]}))
        return result.as_numpy("output-0")[0]

    async def all_at_once() -> list[Any]:
        address = platform.grpc if kind == "grpc" else platform.host
        async with KINDS[f"{kind}-aio"].InferenceServerClient(address) as client:
            return await asyncio.gather(*(one(client, index % 3) for index in range(100)))

    for index, found in enumerate(asyncio.run(all_at_once())):
        np.testing.assert_allclose(found, proba[index % 3], rtol=1e-6)


@each_client
def test_an_unknown_model_is_the_clients_own_error(kind: str, platform: PlatformProcess) -> None:
    with pytest.raises(tritonclient.http.InferenceServerException, match='model "nobody" is not found'):
        metadata(kind, platform, "nobody")
