# SPDX-License-Identifier: Apache-2.0
"""What ``serve run``, ``serve deploy`` and KubeRay import: the platform as one Serve application."""

from __future__ import annotations

import logging
import os
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from modelyard.config import PlatformConfig, load_platform_config
from modelyard.errors import InvalidConfig
from modelyard.serve.applications import AFTER_DRAIN_S
from modelyard.serve.autoscaling import find_policy
from modelyard.serve.controller import Controller
from modelyard.serve.handle import CONTROLLER_NAME
from modelyard.serve.ingress import INGRESS_NAME, Ingress

logger = logging.getLogger("ray.serve")

_REQUESTS_AT_ONCE = 10_000
_LEAST_DRAIN_S = 60.0
_BEFORE_MODELS_S = 10.0


def build(args: dict[str, Any]) -> Application:
    """The platform's application.

    Args:
        args: ``PlatformConfig``: the ``args`` of the application in the Serve file.

    Raises:
        InvalidConfig: With one problem for each key that is wrong.
    """
    config = load_platform_config(args)
    _check_policies(config)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        logger.info(
            "Modelyard runs behind Serve's Python proxy. `modelyard serve FILE` starts it several times faster."
        )
    values = config.model_dump(mode="json")
    # INFO would have Serve build a log record for each request, also where it then writes none.
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    place = {"label_selector": config.ingress.node_labels} if config.ingress.node_labels else {}
    controller = serve.deployment(
        name=CONTROLLER_NAME,
        num_replicas=1,
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": config.controller.num_cpus, **place},
        logging_config=quiet,
    )(Controller).bind(values)
    ingress_values = values | {"models": []}
    ingress = serve.deployment(
        name=INGRESS_NAME,
        num_replicas=config.ingress.num_replicas,
        max_ongoing_requests=_REQUESTS_AT_ONCE,
        max_surge_percent=100,
        # Before the models: on a node that goes, Serve stops each this long before the end.
        graceful_shutdown_timeout_s=_drain_timeout_s(config) + AFTER_DRAIN_S + _BEFORE_MODELS_S,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": config.ingress.num_cpus, **place},
        logging_config=quiet,
    )(serve.ingress()(Ingress))
    return ingress.bind(controller, ingress_values)


def _drain_timeout_s(config: PlatformConfig) -> float:
    if config.ingress.drain_timeout_s is not None:
        return config.ingress.drain_timeout_s
    return max([_LEAST_DRAIN_S, *(model.limits.request_timeout_s for model in config.models)])


def _check_policies(config: PlatformConfig) -> None:
    """Refuses policies that are not there before anything is deployed.

    Raises:
        InvalidConfig: With one problem for each.
    """
    problems = []
    for name, path in config.autoscaling_policies.items():
        try:
            if not callable(find_policy(path)):
                problems.append(f"autoscaling_policies.{name}: expected a function, got {path}")
        except Exception as exc:  # noqa: BLE001  # whatever the user's module raises while it is imported
            problems.append(f"autoscaling_policies.{name}: {type(exc).__name__}: {exc}")
    if problems:
        raise InvalidConfig(tuple(problems))
