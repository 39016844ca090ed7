# SPDX-License-Identifier: Apache-2.0
"""Run in a process of its own, for the published stubs import TensorFlow: asks every method, prints the answers."""

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

MODEL = "half_plus_two"
TIMEOUT_S = 60
LOAD_S = 90


def named(request: Any, model: str = MODEL, signature: str = "", version: int = 0, label: str = "") -> Any:
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    return request


def predict(values: Any = (1.0, 2.0, 5.0), name: str = "x", **spec: Any) -> predict_pb2.PredictRequest:
    request = named(predict_pb2.PredictRequest(), **spec)
    request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return request


def examples(request: Any, **spec: Any) -> Any:
    if spec:
        named(request, **spec)
    for value in (1.0, 2.0):
        feature = tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        request.input.example_list.examples.add().features.feature["x"].CopyFrom(feature)
    return request


def error_of(call: Callable[[], Any]) -> list[str]:
    """Code and message of what a call raises."""
    try:
        return ["no error", str(call())]
    except grpc.RpcError as exc:
        return [exc.code().name, exc.details()]


class Asking:
    """The stubs over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        return self.prediction.Predict(request, timeout=TIMEOUT_S)

    def ask_predict(self) -> dict[str, Any]:
        typed = predict_pb2.PredictRequest()
        named(typed).inputs["x"].CopyFrom(TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1.0]))
        typed.inputs["x"].tensor_shape.dim.add(size=3)
        pictures = predict(np.array([b"\xff\x00", b""], object), "picture_bytes", signature="pictures")
        answer = self.predict(predict())
        filtered = predict(np.array([b"abc"], object), "picture_bytes", signature="pictures")
        filtered.output_filter.append("length")
        return {
            "spec": MessageToDict(answer.model_spec),
            "array": tf.make_ndarray(answer.outputs["y"]).tolist(),
            "float_val": list(answer.outputs["y"].float_val),
            "matrix": tf.make_ndarray(self.predict(predict(np.float32([[1], [2]]))).outputs["y"]).tolist(),
            "repeated": list(self.predict(typed).outputs["y"].float_val),
            "version": list(self.predict(predict(version=123)).outputs["y"].float_val),
            "label": list(self.predict(predict(label="stable")).outputs["y"].float_val),
            "bytes": [one.hex() for one in self.predict(pictures).outputs["same_bytes"].string_val],
            "filtered": list(self.predict(filtered).outputs),
            "sklearn": tf.make_ndarray(
                self.predict(predict(np.float64([[5.1, 3.5, 1.4, 0.2]]), model="iris-sklearn")).outputs["output-0"]
            ).tolist(),
        }

    def ask_examples(self) -> dict[str, Any]:
        classified = self.prediction.Classify(
            examples(classification_pb2.ClassificationRequest(), signature="classify_x_to_y"), timeout=TIMEOUT_S
        )
        regressed = self.prediction.Regress(
            examples(regression_pb2.RegressionRequest(), signature="regress_x_to_y", version=123), timeout=TIMEOUT_S
        )
        several = examples(inference_pb2.MultiInferenceRequest())
        for signature, method in (("classify_x_to_y", "classify"), ("regress_x_to_y", "regress")):
            named(several.tasks.add(method_name=f"tensorflow/serving/{method}"), signature=signature)
        results = self.prediction.MultiInference(several, timeout=TIMEOUT_S).results
        return {
            "classify": [[one.score for one in row.classes] for row in classified.result.classifications],
            "regress": [one.value for one in regressed.result.regressions],
            "regress spec": MessageToDict(regressed.model_spec),
            "several": [one.WhichOneof("result") for one in results],
            "several specs": [one.model_spec.signature_name for one in results],
        }

    def ask_models(self) -> dict[str, Any]:
        request = named(get_model_metadata_pb2.GetModelMetadataRequest())
        request.metadata_field.append("signature_def")
        metadata = self.prediction.GetModelMetadata(request, timeout=TIMEOUT_S)
        definitions = get_model_metadata_pb2.SignatureDefMap()
        metadata.metadata["signature_def"].Unpack(definitions)
        own = definitions.signature_def["serving_default"]
        status = self.models.GetModelStatus(named(get_model_status_pb2.GetModelStatusRequest()), timeout=TIMEOUT_S)
        return {
            "signatures": sorted(definitions.signature_def),
            "input": MessageToDict(own.inputs["x"]),
            "methods": {name: one.method_name for name, one in definitions.signature_def.items()},
            "metadata version": metadata.model_spec.version.value,
            "status": [MessageToDict(one) for one in status.model_version_status],
        }

    def ask_wrongly(self, folder: str) -> dict[str, list[str]]:
        spec = {"model": "nobody"}
        return {
            "model": error_of(lambda: self.predict(predict(**spec))),
            "version": error_of(lambda: self.predict(predict(version=9))),
            "signature": error_of(lambda: self.predict(predict(signature="nothing"))),
            "input": error_of(lambda: self.predict(predict(name="z"))),
            "datatype": error_of(lambda: self.predict(predict([b"text"]))),
            "bomb": error_of(lambda: self.predict(bomb())),
            "method": error_of(
                lambda: self.prediction.Classify(examples(classification_pb2.ClassificationRequest(), signature=""))
            ),
            "field": error_of(
                lambda: self.prediction.GetModelMetadata(named(get_model_metadata_pb2.GetModelMetadataRequest()))
            ),
            "status": error_of(
                lambda: self.models.GetModelStatus(named(get_model_status_pb2.GetModelStatusRequest(), **spec))
            ),
            "list": error_of(lambda: self.models.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest())),
            "name": error_of(lambda: self.reload("iris-sklearn", base_path=folder)),
            "path": error_of(lambda: self.reload("nowhere", base_path="/nowhere")),
        }

    def reload(self, *names: str, base_path: str) -> Any:
        request = model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.SetInParent()
        for name in names:
            request.config.model_config_list.config.add(name=name, base_path=base_path, model_platform="tensorflow")
        return self.models.HandleReloadConfigRequest(request, timeout=LOAD_S)

    def ask_reload(self, folder: str) -> dict[str, Any]:
        """A list with one model, which is asked at once; then an empty list, after which it is not there."""
        answer = self.reload("from_a_list", base_path=folder)
        found = list(self.predict(predict(model="from_a_list")).outputs["y"].float_val)
        self.reload(base_path="")
        gone = error_of(lambda: self.predict(predict(model="from_a_list")))
        return {"code": answer.status.error_code, "answer": found, "gone": gone[0]}

    def follow_versions(self, folder: Path, newer: Path) -> dict[str, Any]:
        """Asks without a pause while a new version appears, until it answers and the old one is gone."""
        seen: list[int] = []
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                seen.append(self.predict(predict()).model_spec.version.value)

        thread = threading.Thread(target=ask)
        thread.start()
        states = []
        try:
            newer.rename(folder / newer.name)
            deadline = time.monotonic() + LOAD_S
            while states != [(int(newer.name), 30)] and time.monotonic() < deadline and thread.is_alive():
                time.sleep(0.2)
                status = self.models.GetModelStatus(named(get_model_status_pb2.GetModelStatusRequest()))
                states = [(one.version, one.state) for one in status.model_version_status]
        finally:
            ended.set()
            thread.join(TIMEOUT_S)
        return {"states": states, "asked": len(seen), "seen": sorted(set(seen)), "in order": seen == sorted(seen)}


def bomb() -> predict_pb2.PredictRequest:
    request = predict(1.0)
    request.inputs["x"].tensor_shape.dim.add(size=10**12)
    return request


def main() -> None:
    question = json.load(sys.stdin)
    folder = Path(question["folder"])
    with grpc.insecure_channel(question["grpc"]) as channel:
        asking = Asking(channel)
        found = {
            "predict": asking.ask_predict(),
            "examples": asking.ask_examples(),
            "models": asking.ask_models(),
            "errors": asking.ask_wrongly(question["folder"]),
            "reload": asking.ask_reload(question["folder"]),
            "versions": asking.follow_versions(folder, Path(question["newer"])),
        }
    shutil.rmtree(folder / Path(question["newer"]).name)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
