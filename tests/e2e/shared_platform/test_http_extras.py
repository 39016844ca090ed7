# SPDX-License-Identifier: Apache-2.0
"""Compression, explanations, batch ids and the shared model paths, by the clients that people have."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import lightgbm
import numpy as np
import openai
import pytest
import tritonclient.grpc
import xgboost
from answers import Answers, Array
from platform_process import PlatformProcess

from modelyard.client import Platform

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}

each_encoding = pytest.mark.parametrize("encoding", PACK)


# -- compression


@pytest.fixture
def many(answers: dict[str, Answers]) -> tuple[Array, Array]:
    """Rows whose request and reply are large enough to be worth compressing, and their answers."""
    known = answers["iris-lightgbm"]
    return np.repeat(known.inputs["input-0"], 2000, axis=0), np.repeat(known.default, 2000, axis=0)


@each_encoding
def test_a_compressed_v1_request_gets_a_compressed_reply(
    http: httpx.Client, many: tuple[Array, Array], encoding: str
) -> None:
    body = PACK[encoding](json.dumps({"instances": many[0].tolist()}).encode())
    headers = {"content-encoding": encoding, "accept-encoding": encoding}
    reply = http.post("/v1/models/iris-lightgbm:predict", content=body, headers=headers)
    assert (reply.headers["content-encoding"], reply.headers["vary"]) == (encoding, "accept-encoding")
    assert int(reply.headers["content-length"]) < len(reply.content) / 10
    np.testing.assert_allclose(reply.json()["predictions"], many[1])


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (zlib.compress(bytes(50_000_000)), "deflate", 413),
        (gzip.compress(bytes(1_000_001)), "gzip", 413),
        (gzip.compress(b"{}")[:-4], "gzip", 400),
        (b"{}", "br", 415),
    ],
    ids=["bomb", "too large", "cut off", "unknown"],
)
def test_a_body_that_cannot_be_unpacked_is_refused(http: httpx.Client, body: bytes, encoding: str, status: int) -> None:
    reply = http.post("/v2/models/iris-sklearn/infer", content=body, headers={"content-encoding": encoding})
    assert (reply.status_code, list(reply.json())) == (status, ["error"])


# -- explanations


@pytest.fixture(scope="module")
def contributions(models: Path, answers: dict[str, Answers]) -> dict[str, Array]:
    """What the libraries themselves say of each feature's part."""
    boosted = xgboost.Booster(model_file=models / "iris-xgboost" / "model.json")
    matrix = xgboost.DMatrix(answers["iris-xgboost"].inputs["input-0"], feature_names=boosted.feature_names)
    leaves = lightgbm.Booster(model_file=models / "iris-lightgbm" / "model.txt")
    flat = np.asarray(leaves.predict(answers["iris-lightgbm"].inputs["input-0"], pred_contrib=True))
    return {
        "iris-xgboost": boosted.predict(matrix, pred_contribs=True),
        "iris-lightgbm": flat.reshape(len(flat), 3, -1),
    }


@pytest.mark.parametrize("version", ["", "/versions/1"])
@pytest.mark.parametrize("model", ["iris-xgboost", "iris-lightgbm"])
def test_explanations_are_the_librarys(
    http: httpx.Client, model: str, version: str, answers: dict[str, Answers], contributions: dict[str, Array]
) -> None:
    reply = http.post(f"/v1/models/{model}{version}:explain", json={"instances": answers[model].rows})
    np.testing.assert_allclose(reply.json()["explanations"], contributions[model], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["iris-xgboost", "iris-lightgbm"])
def test_contributions_can_be_asked_for_over_grpc(
    platform: PlatformProcess, model: str, answers: dict[str, Answers], contributions: dict[str, Array]
) -> None:
    rows = answers[model].inputs["input-0"].astype(np.float64)
    tensor = tritonclient.grpc.InferInput("x", list(rows.shape), "FP64")
    tensor.set_data_from_numpy(rows)
    outputs = [tritonclient.grpc.InferRequestedOutput("contributions")]
    with tritonclient.grpc.InferenceServerClient(platform.grpc) as client:
        found = client.infer(model, [tensor], outputs=outputs).as_numpy("contributions")
    np.testing.assert_allclose(found, contributions[model], rtol=1e-5, atol=1e-6)


def test_a_model_that_cannot_explain_is_501(http: httpx.Client, answers: dict[str, Answers]) -> None:
    reply = http.post("/v1/models/iris-sklearn:explain", json={"instances": answers["iris-sklearn"].rows})
    assert (reply.status_code, list(reply.json())) == (501, ["error"])


# -- batch ids


@pytest.fixture
def batched(platform: PlatformProcess) -> Iterator[str]:
    """A model that waits long enough for requests to meet, and says which did."""
    with Platform.connect(platform.url) as client:
        batching = {"report_batch_id": True, "batch_wait_timeout_s": 0.5, "max_batch_size": 2}
        client.register("batched", framework="sklearn", uri="models/iris-sklearn", batching=batching)
        client.wait_ready("batched")
        yield "batched"
        client.unregister("batched", wait=True)


def test_requests_of_one_batch_have_one_id(http: httpx.Client, batched: str) -> None:
    def ask() -> Any:
        reply = http.post(f"/v1/models/{batched}:predict", json={"instances": [[5.1, 3.5, 1.4, 0.2]]})
        assert reply.status_code == 200
        return reply.json()

    with ThreadPoolExecutor(2) as pool:
        pairs = [[task.result() for task in [pool.submit(ask), pool.submit(ask)]] for _ in range(3)]
    together = [one["batchId"] == other["batchId"] for one, other in pairs]
    assert any(together)
    assert len({one["batchId"] for one, _ in pairs}) == 3
    assert pairs[0][0] == {"message": "", "batchId": pairs[0][0]["batchId"], "predictions": [0]}


# -- the paths that KServe, TensorFlow Serving and OpenAI share


def test_openais_client_finds_the_models(platform: PlatformProcess) -> None:
    with openai.OpenAI(base_url=f"{platform.url}/v1", api_key="none", max_retries=0) as client:
        assert set(platform.models) <= {model.id for model in client.models.list()}
        assert client.models.retrieve("housing").created > 1_700_000_000


def test_metadata_is_tensorflow_servings(http: httpx.Client) -> None:
    document = http.get("/v1/models/housing/labels/stable/metadata").json()
    assert document["model_spec"] == {"name": "housing", "signature_name": "", "version": "1"}
    definition = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert definition["inputs"]["district"]["dtype"] == "DT_STRING"
