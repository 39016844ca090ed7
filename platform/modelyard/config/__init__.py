# SPDX-License-Identifier: Apache-2.0
"""Configuration: where outside data enters, is checked once, and becomes typed objects."""

from modelyard.config.file import IMPORT_PATH, ServeFile, load_serve_file
from modelyard.config.models import ModelsFile, read_models, to_short
from modelyard.config.platform import (
    CatalogConfig,
    ControllerConfig,
    IngressConfig,
    PlatformConfig,
    PoolsConfig,
    SecurityConfig,
    check_policy,
    load_platform_config,
)
from modelyard.config.runtime import Runtime
from modelyard.config.spec import (
    Autoscaling,
    Batching,
    Limits,
    ModelSpec,
    Resources,
    RolloutPlan,
    RolloutPolicy,
    TrafficPlan,
    check_framework,
    load_model_spec,
    merge_rollout,
    parse_model_spec,
    parse_section,
)
from modelyard.config.versions import VersionPolicy

__all__ = [
    "IMPORT_PATH",
    "Autoscaling",
    "Batching",
    "CatalogConfig",
    "ControllerConfig",
    "IngressConfig",
    "Limits",
    "ModelSpec",
    "ModelsFile",
    "PlatformConfig",
    "PoolsConfig",
    "Resources",
    "RolloutPlan",
    "RolloutPolicy",
    "Runtime",
    "SecurityConfig",
    "ServeFile",
    "TrafficPlan",
    "VersionPolicy",
    "check_framework",
    "check_policy",
    "load_model_spec",
    "load_platform_config",
    "load_serve_file",
    "merge_rollout",
    "parse_model_spec",
    "parse_section",
    "read_models",
    "to_short",
]
