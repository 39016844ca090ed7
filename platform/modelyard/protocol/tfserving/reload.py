# SPDX-License-Identifier: Apache-2.0
"""The configuration in ``HandleReloadConfigRequest``: the models that are to be served, as the platform specifies them.

Source: TensorFlow Serving ``config/model_server_config.proto``, ``model_servers/server_core.cc`` for what is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from modelyard.errors import InvalidConfig
from modelyard.protos import tensorflow_error_pb2
from modelyard.protos import tensorflow_serving_pb2 as pb

_FRAMEWORK: Final = "tensorflow"
_LIST: Final = "model_config_list"
_UNSUPPORTED: Final = (
    "config: ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
    "supported"
)


def decode_config(message: pb.ReloadConfigRequest) -> list[dict[str, Any]]:
    """A ``ModelSpec`` as JSON for each model of the list.

    Raises:
        InvalidConfig: It is no list, or an entry asks for what is not served; with one problem for each.
    """
    choice = message.config.WhichOneof("config")
    if choice != _LIST:
        raise InvalidConfig((f"{_UNSUPPORTED}: expected {_LIST}, got {choice or 'none'}",))
    problems: list[str] = []
    specs: list[dict[str, Any]] = []
    seen: set[str] = set()
    for index, config in enumerate(message.config.model_config_list.config):
        where = f"{_LIST}.config[{index}]"
        problems += [f"{where}.{problem}" for problem in _check(config, seen)]
        seen.add(config.name)
        specs.append(_to_spec(config))
    if problems:
        raise InvalidConfig(tuple(problems))
    return specs


def _check(config: pb.ModelConfig, seen: set[str]) -> Iterable[str]:
    if config.name in seen:
        yield f"name: Illegal to list model {config.name} multiple times in config list"
    if not config.base_path:
        yield "base_path: expected a path, got none"
    elif not config.base_path.startswith("/") and "://" not in config.base_path:
        yield f'base_path: expected an absolute path or URI, got "{config.base_path}"'
    if config.model_platform and config.model_type:
        yield "model_type: Illegal setting both model_type (deprecated) and model_platform"
    elif config.model_platform not in (_FRAMEWORK, "") or config.model_type not in (0, pb.TENSORFLOW):
        got = config.model_platform or str(config.model_type)
        yield f'model_platform: unsupported platform: expected "{_FRAMEWORK}", got "{got}"'
    elif not config.model_platform and not config.model_type:
        yield f'model_platform: Illegal setting neither it nor model_type (deprecated): expected "{_FRAMEWORK}"'
    if config.HasField("logging_config"):
        yield "logging_config: requests are not logged: expected none"
    policy = config.model_version_policy
    if policy.WhichOneof("policy_choice") == "specific" and not policy.specific.versions:
        yield "model_version_policy.specific: expected versions, got none"


def _to_spec(config: pb.ModelConfig) -> dict[str, Any]:
    return {
        "name": config.name,
        "framework": _FRAMEWORK,
        "uri": config.base_path,
        "version_policy": {**_to_policy(config.model_version_policy), "labels": dict(config.version_labels)},
    }


def _to_policy(policy: pb.FileSystemStoragePathSourceConfig.ServableVersionPolicy) -> dict[str, Any]:
    """Without a choice the highest version is served."""
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return {"all": True}
    if choice == "specific":
        return {"specific": sorted(set(policy.specific.versions))}
    return {"latest": policy.latest.num_versions or 1}


def encode_reloaded(metric_names: Iterable[str]) -> pb.ReloadConfigResponse:
    """The answer where everything is as it was asked for.

    Args:
        metric_names: Counters of TensorFlow whose increase the client wants to know. None of them runs here, so none
            has increased, which is also what TensorFlow Serving says of one that it does not know.
    """
    response = pb.ReloadConfigResponse()
    response.status.error_code = tensorflow_error_pb2.OK
    for name in dict.fromkeys(metric_names):
        response.metric.add(name=name, int64_value_increase=0)
    return response
