# SPDX-License-Identifier: Apache-2.0
"""What a replica asks the cluster for: its own process's resources, or a placement group for several workers."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.config import ModelSpec, Runtime
from modelyard.errors import InvalidConfig
from modelyard.serve.applications import RevisionDeployment


def _deployment(framework: str, resources: dict[str, Any], **options: Any) -> Any:
    spec = ModelSpec.model_validate(
        {"name": "m", "framework": framework, "uri": "models/m", "options": options, "resources": resources}
    )
    one = RevisionDeployment("m@1", spec.revision_content(), spec, "sha256:0", Runtime(), None)
    return one.to_target("platform", "", {}, is_new=True).target._bound_deployment


def test_a_model_of_one_process_has_no_placement_group() -> None:
    made = _deployment("sklearn", {"num_cpus": 0.5, "num_gpus": 1, "accelerator_type": "L4"})
    assert made._replica_config.placement_group_bundles is None
    assert made.ray_actor_options["num_gpus"] == 1
    assert made.ray_actor_options["accelerator_type"] == "L4"


def test_an_engine_without_a_gpu_lives_in_the_replica() -> None:
    made = _deployment("vllm", {"num_cpus": 2})
    assert made._replica_config.placement_group_bundles is None
    assert (made.ray_actor_options["num_cpus"], made.ray_actor_options["num_gpus"]) == (2, 0)


@pytest.mark.parametrize("num_gpus", [1, 6])
def test_gpus_that_the_workers_cannot_share_equally_are_refused(num_gpus: float) -> None:
    with pytest.raises(InvalidConfig, match=r"resources\.num_gpus: expected a multiple of 4, its workers"):
        _deployment("vllm", {"num_gpus": num_gpus}, engine={"tensor_parallel_size": 4})


@pytest.mark.parametrize(
    ("num_gpus", "engine", "gpus"),
    [
        (1, {}, [1]),
        (0.4, {}, [0.4]),
        (4, {"tensor_parallel_size": 4}, [1, 1, 1, 1]),
        (4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, [1, 1, 1, 1]),
    ],
)
def test_an_engines_gpus_are_those_of_its_workers(num_gpus: float, engine: dict[str, int], gpus: list[float]) -> None:
    resources = {"num_cpus": 2, "num_gpus": num_gpus, "accelerator_type": "H100", "memory_mb": 1000}
    made = _deployment("vllm", resources, engine=engine)
    first, *others = made._replica_config.placement_group_bundles
    assert [bundle["GPU"] for bundle in (first, *others)] == gpus
    assert {bundle["accelerator_type:H100"] for bundle in (first, *others)} == {0.001}
    assert (first["CPU"], first["memory"]) == (2, 1000 * 1024 * 1024)
    assert all("CPU" not in bundle for bundle in others)
    # The process itself takes none of the workers' GPUs.
    assert (made.ray_actor_options["num_cpus"], made.ray_actor_options["num_gpus"]) == (2, 0)
    assert "accelerator_type" not in made.ray_actor_options


def test_labels_choose_the_nodes() -> None:
    alone = _deployment("sklearn", {"node_labels": {"zone": "eu-1"}})
    assert alone.ray_actor_options["label_selector"] == {"zone": "eu-1"}
    resources = {"num_gpus": 2, "node_labels": {"zone": "in(a,b)"}}
    engine = _deployment("vllm", resources, engine={"tensor_parallel_size": 2})
    assert engine._replica_config.placement_group_bundle_label_selector == [{"zone": "in(a,b)"}] * 2
    assert "label_selector" not in engine.ray_actor_options


@pytest.mark.parametrize(("request_timeout_s", "shutdown_s"), [(20, 40), (60, 70), (600, 610)])
def test_a_replica_that_stops_has_as_long_as_its_requests_may_take(request_timeout_s: float, shutdown_s: float) -> None:
    limits = {"request_timeout_s": request_timeout_s}
    spec = ModelSpec.model_validate({"name": "m", "framework": "sklearn", "uri": "models/m", "limits": limits})
    one = RevisionDeployment("m@1", spec.revision_content(), spec, "sha256:0", Runtime(), None)
    made = one.to_target("platform", "", {}, is_new=True).target._bound_deployment
    assert made._deployment_config.graceful_shutdown_timeout_s == shutdown_s
    assert made._deployment_config.user_config["request_timeout_s"] == request_timeout_s
