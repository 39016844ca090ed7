# SPDX-License-Identifier: Apache-2.0
"""States, signatures and lists of models, as TensorFlow Serving's clients read and write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelyard.admin import ModelState
from modelyard.config import parse_model_spec
from modelyard.errors import InvalidConfig, InvalidRequest
from modelyard.protocol.tfserving import metadata, reload, status
from modelyard.protos import tensorflow_pb2 as tf
from modelyard.protos import tensorflow_serving_pb2 as pb
from modelyard.signature import SavedSignature, Signature, TensorSpec
from modelyard.tensor import DATATYPES

PLAIN = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "BYTES", (-1,)),))
SAVED = Signature(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("any", "INT64", ())),
    (TensorSpec("y", "BOOL", (-1,)), TensorSpec("z", "FP16", ())),
    saved=SavedSignature(
        "serving_default",
        "tensorflow/serving/classify",
        {"x": "serving_default_x:0", "any": "serving_default_any:0"},
        {"y": "StatefulPartitionedCall:0", "z": "StatefulPartitionedCall:1"},
        frozenset({"any"}),
        frozenset({"z"}),
    ),
)


@pytest.mark.parametrize("state", ModelState)
def test_every_state_of_a_model_has_tensorflow_servings_name(state: ModelState) -> None:
    known = {"START", "LOADING", "AVAILABLE", "UNLOADING", "END"}
    assert status.to_version_status("1", state.value, "")["state"] in known


def test_states_as_a_message() -> None:
    versions = [status.to_version_status("2", "ready", ""), status.to_version_status("30", "failed", "no file")]
    first, second = status.encode_status(versions).model_version_status
    assert (first.version, first.state, first.status.error_code) == (2, pb.ModelVersionStatus.AVAILABLE, 0)
    assert (second.version, second.state) == (30, pb.ModelVersionStatus.END)
    assert (second.status.error_code, second.status.error_message) == (2, "no file")


def test_every_datatype_has_tensorflows_name() -> None:
    assert metadata.DTYPES.keys() == DATATYPES.keys()
    assert set(metadata.DTYPES.values()) <= {name for name, _ in tf.DataType.items()}


def test_metadata_of_a_model_that_is_no_savedmodel() -> None:
    document = json.loads(metadata.encode_metadata("half", "123", {"serving_default": PLAIN}).body)
    assert document["model_spec"] == {"name": "half", "signature_name": "", "version": "123"}
    definition = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert definition["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}], "unknown_rank": False},
        "name": "x:0",
    }
    assert definition["outputs"]["y"]["dtype"] == "DT_STRING"
    assert (definition["method_name"], definition["defaults"]) == ("tensorflow/serving/predict", {})


def test_metadata_has_all_signatures_with_what_the_savedmodel_says() -> None:
    document = json.loads(metadata.encode_metadata("m", "1", {"serving_default": SAVED, "other": PLAIN}).body)
    definitions = document["metadata"]["signature_def"]["signature_def"]
    assert list(definitions) == ["serving_default", "other"]
    found = definitions["serving_default"]
    assert found["method_name"] == "tensorflow/serving/classify"
    assert found["inputs"]["x"]["name"] == "serving_default_x:0"
    assert found["inputs"]["any"]["tensor_shape"] == {"dim": [], "unknown_rank": True}
    assert found["outputs"]["y"]["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert (found["outputs"]["z"]["tensor_shape"]["unknown_rank"], found["outputs"]["z"]["dtype"]) == (True, "DT_HALF")


def test_metadata_as_a_message() -> None:
    answer = metadata.encode_metadata_message("m", "7", {"serving_default": SAVED, "other": PLAIN})
    assert (answer.model_spec.name, answer.model_spec.version.value, answer.model_spec.signature_name) == ("m", 7, "")
    packed = answer.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    found = pb.SignatureDefMap.FromString(packed.value).signature_def
    assert set(found) == {"serving_default", "other"}
    own = found["serving_default"]
    assert (own.method_name, own.inputs["x"].name) == ("tensorflow/serving/classify", "serving_default_x:0")
    assert [dim.size for dim in own.inputs["x"].tensor_shape.dim] == [-1, 2]
    assert own.inputs["any"].tensor_shape.unknown_rank
    assert own.outputs["z"].dtype == tf.DT_HALF


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "must specify at least one metadata_field"),
        (["signature_def", "graph"], 'Metadata field "graph" is not supported: expected "signature_def"'),
    ],
)
def test_other_metadata_is_refused(fields: list[str], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        metadata.check_fields(fields)
    assert message in str(caught.value)
    metadata.check_fields(["signature_def", "signature_def"])


# -- lists of models


def config(**changes: Any) -> pb.ModelConfig:
    return pb.ModelConfig(**{"name": "half", "base_path": "/models/half", "model_platform": "tensorflow", **changes})


def decode(*configs: pb.ModelConfig) -> list[dict[str, Any]]:
    return reload.decode_config(
        pb.ReloadConfigRequest(config=pb.ModelServerConfig(model_config_list=pb.ModelConfigList(config=configs)))
    )


Policy = pb.FileSystemStoragePathSourceConfig.ServableVersionPolicy


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (Policy(), {"latest": 1}),
        (Policy(latest=Policy.Latest()), {"latest": 1}),
        (Policy(latest=Policy.Latest(num_versions=3)), {"latest": 3}),
        (Policy(all=Policy.All()), {"all": True}),
        (Policy(specific=Policy.Specific(versions=[43, 42, 42])), {"specific": [42, 43]}),
    ],
)
def test_each_policy_of_versions_is_the_platforms(policy: pb.FileSystemStoragePathSourceConfig, wanted: Any) -> None:
    (spec,) = decode(config(model_version_policy=policy, version_labels={"stable": 42}))
    assert spec == {
        "name": "half",
        "framework": "tensorflow",
        "uri": "/models/half",
        "version_policy": {**wanted, "labels": {"stable": 42}},
    }
    assert parse_model_spec(spec).version_policy is not None


def test_the_older_way_to_name_the_platform() -> None:
    (spec,) = decode(config(model_platform="", model_type=pb.TENSORFLOW))
    assert spec["framework"] == "tensorflow"


def test_a_list_may_be_empty() -> None:
    assert decode() == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"base_path": ""}, "config[0].base_path: expected a path, got none"),
        ({"base_path": "models/half"}, 'base_path: expected an absolute path or URI, got "models/half"'),
        ({"model_platform": ""}, "config[0].model_platform: Illegal setting neither it nor model_type"),
        ({"model_platform": "caffe"}, 'model_platform: unsupported platform: expected "tensorflow", got "caffe"'),
        ({"model_type": pb.TENSORFLOW}, "config[0].model_type: Illegal setting both"),
        ({"model_platform": "", "model_type": pb.OTHER}, "config[0].model_platform: unsupported platform"),
        ({"logging_config": pb.LoggingConfig()}, "config[0].logging_config: requests are not logged"),
        ({"model_version_policy": Policy(specific=Policy.Specific())}, "specific: expected versions, got none"),
    ],
)
def test_an_entry_that_asks_for_what_is_not_served_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        decode(config(**changes), config(name="other"))
    (found,) = caught.value.problems
    assert found.startswith("model_config_list.")
    assert problem in found


def test_a_name_is_listed_once() -> None:
    with pytest.raises(InvalidConfig, match="Illegal to list model half multiple times in config list"):
        decode(config(), config(base_path="/else"))


@pytest.mark.parametrize("message", [pb.ModelServerConfig(), pb.ModelServerConfig(custom_model_config={})])
def test_a_configuration_that_is_no_list_is_refused(message: pb.ModelServerConfig) -> None:
    with pytest.raises(InvalidConfig, match="Only ModelConfigList is currently supported"):
        reload.decode_config(pb.ReloadConfigRequest(config=message))


def test_the_answer_has_each_metric_once() -> None:
    answer = reload.encode_reloaded(["a", "b", "a"])
    assert (answer.HasField("status"), answer.status.error_code) == (True, 0)
    assert [(one.name, one.int64_value_increase) for one in answer.metric] == [("a", 0), ("b", 0)]
    assert answer.metric[0].WhichOneof("value_increase") == "int64_value_increase"
