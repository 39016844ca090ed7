# SPDX-License-Identifier: Apache-2.0
"""Clients that know nothing of models: curl, httpx, and gRPC's own health and reflection clients."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from answers import Answers
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from platform_process import PlatformProcess

MODELS = ("iris-sklearn", "iris-xgboost", "iris-lightgbm", "breast-cancer", "housing")
IRIS = '{"instances": [[5.1, 3.5, 1.4, 0.2]]}'


def curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-sS", "--max-time", "20", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_curl_with_its_default_content_type(platform: PlatformProcess) -> None:
    assert curl(f"{platform.url}/v1/models/iris-sklearn:predict", "-d", IRIS) == {"predictions": [0]}


def test_curl_with_json_and_a_charset(platform: PlatformProcess) -> None:
    header = ("-H", "Content-Type: application/json; charset=utf-8")
    assert curl(f"{platform.url}/v1/models/iris-sklearn:predict", *header, "-d", IRIS) == {"predictions": [0]}


def test_curl_sees_all_models(platform: PlatformProcess) -> None:
    found = curl(f"{platform.url}/v1/models/")
    assert set(MODELS) <= set(found["models"])
    assert found["object"] == "list"


@pytest.mark.parametrize("version", ["", "/versions/1"])
@pytest.mark.parametrize("model", MODELS)
def test_v1_predicts_like_the_library(
    http: httpx.Client, model: str, version: str, answers: dict[str, Answers]
) -> None:
    reply = http.post(f"/v1/models/{model}{version}:predict", json={"instances": answers[model].rows})
    np.testing.assert_allclose(reply.json()["predictions"], answers[model].default, rtol=1e-6)


def test_v1_columns_get_outputs(http: httpx.Client, answers: dict[str, Answers]) -> None:
    columns = {name: array.tolist() for name, array in answers["housing"].inputs.items()}
    reply = http.post("/v1/models/housing:predict", json={"inputs": columns})
    np.testing.assert_allclose(reply.json()["outputs"], answers["housing"].default)


def test_v1_probabilities_on_request(http: httpx.Client, answers: dict[str, Answers]) -> None:
    known = answers["breast-cancer"]
    body = {"instances": known.rows, "outputs": ["predict_proba"]}
    np.testing.assert_allclose(
        http.post("/v1/models/breast-cancer:predict", json=body).json()["predictions"], known.proba
    )


@pytest.mark.parametrize(
    "path", ["/", "/v2", "/v2/health/live", "/v2/health/ready", "/v1/models/housing", "/v2/models"]
)
def test_head_works_where_get_does(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")


def test_the_callers_request_id_comes_back(http: httpx.Client) -> None:
    reply = http.get("/v2/models/housing", headers={"x-request-id": "mine-7"})
    assert reply.headers["x-request-id"] == "mine-7"


def test_every_reply_has_a_request_id_of_its_own(http: httpx.Client) -> None:
    idents = {http.get("/v2").headers["x-request-id"] for _ in range(3)}
    assert len(idents) == 3


@pytest.fixture(scope="module")
def channel(platform: PlatformProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(platform.grpc) as opened:
        yield opened


SERVICES = {
    "inference.GRPCInferenceService": "ModelInfer",
    "tensorflow.serving.PredictionService": "Predict",
    "tensorflow.serving.ModelService": "GetModelStatus",
}


@pytest.mark.parametrize("service", ["", *SERVICES, "iris-sklearn"])
def test_health_check_says_serving(channel: grpc.Channel, service: str) -> None:
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch_begins_with_the_status(channel: grpc.Channel) -> None:
    stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
    stream.cancel()


@pytest.mark.parametrize(("name", "method"), SERVICES.items())
def test_reflection_describes_the_services(channel: grpc.Channel, name: str, method: str) -> None:
    reflected = ProtoReflectionDescriptorDatabase(channel)
    assert {name, "grpc.health.v1.Health"} <= set(reflected.get_services())
    assert method in DescriptorPool(reflected).FindServiceByName(name).methods_by_name
