# SPDX-License-Identifier: Apache-2.0
"""Triton's model configuration and statistics, as documents: HTTP sends them as they are, gRPC as messages.

Tools written for Triton (``perf_analyzer`` among them) read the batch limit, the optional inputs and the transaction
policy from the one, and rates and times from the other.

Source: Triton "Model Configuration Extension" with ``model_config.proto``, and "Statistics Extension".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from modelyard.signature import Signature, TensorSpec
from modelyard.statistics import BatchTotals, ResponseTotals, Statistics, Total


def to_config(
    name: str, framework: str, signature: Signature, max_batch_size: int, batch_wait_s: float, replicas: int, gpus: bool
) -> dict[str, Any]:
    """The configuration of one model.

    Args:
        name: The model.
        framework: What loads it; Triton calls it the backend.
        signature: Its inputs and outputs. With a batch axis the shapes here begin after it.
        max_batch_size: Rows in one call of the model; a larger request is answered all the same.
        batch_wait_s: How long a batch waits to fill, in seconds.
        replicas: Replicas that can answer; Triton calls them instances.
        gpus: Whether a replica has a GPU or a part of one.
    """
    batched = signature.batch_axis
    document: dict[str, Any] = {
        "name": name,
        "platform": "",
        "backend": framework,
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_batch_size if batched else 0,
        "input": [_to_input(spec, batched) for spec in signature.inputs],
        "output": [_to_output(spec, batched) for spec in signature.outputs],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": False},
            "output_pinned_memory": {"enable": False},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
    }
    if batched and max_batch_size > 1 and not signature.decoupled:
        document["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": round(batch_wait_s * 1e6),
            "preserve_ordering": False,
            "priority_levels": 0,
            "default_priority_level": 0,
            "priority_queue_policy": {},
        }
    document |= {
        "instance_group": [_to_instances(name, replicas, gpus)],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
    }
    if signature.decoupled:
        document["model_transaction_policy"] = {"decoupled": True}
    return document


def _to_instances(name: str, replicas: int, gpus: bool) -> dict[str, Any]:
    return {
        "name": f"{name}_0",
        "kind": "KIND_GPU" if gpus else "KIND_CPU",
        "count": replicas,
        "gpus": [],
        "secondary_devices": [],
        "profile": [],
        "passive": False,
        "host_policy": "",
    }


def _to_input(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": _data_type(spec),
        "format": "FORMAT_NONE",
        **_dims(spec, batched),
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": spec.optional,
        "is_non_linear_format_io": False,
    }


def _to_output(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": _data_type(spec),
        **_dims(spec, batched),
        "label_filename": "",
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }


def _data_type(spec: TensorSpec) -> str:
    return "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"


def _dims(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    """Triton wants at least one dimension; one value per row is written as [1] that is reshaped to nothing."""
    dims = list(spec.shape[1:] if batched else spec.shape)
    return {"dims": dims} if dims else {"dims": [1], "reshape": {"shape": []}}


def to_statistics(counted: Iterable[tuple[str, str, Statistics]]) -> dict[str, Any]:
    """The statistics of models.

    Args:
        counted: Name, version and counts of each.
    """
    return {"model_stats": [_to_model_statistics(name, version, counts) for name, version, counts in counted]}


def _to_model_statistics(name: str, version: str, counts: Statistics) -> dict[str, Any]:
    times = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "name": name,
        "version": version,
        "last_inference": counts.last_inference_ms,
        "inference_count": counts.inference_count,
        "execution_count": counts.execution_count,
        "inference_stats": {key: _to_total(getattr(counts, key)) for key in times}
        | {"cache_hit": _to_total(Total()), "cache_miss": _to_total(Total())},
        "response_stats": {str(place): _to_totals(totals) for place, totals in sorted(counts.responses.items())},
        "batch_stats": [{"batch_size": size} | _to_totals(totals) for size, totals in sorted(counts.batches.items())],
        "memory_usage": [],
    }


def _to_totals(totals: BatchTotals | ResponseTotals) -> dict[str, Any]:
    return {key: _to_total(getattr(totals, key)) for key in totals.__slots__}


def _to_total(total: Total) -> dict[str, int]:
    return {"count": total.count, "ns": total.ns}
