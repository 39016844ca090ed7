# SPDX-License-Identifier: Apache-2.0
"""One session of onnxruntime: where it computes, what it takes and gives, and its errors in our words."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.signature import TensorSpec
from modelyard.tensor import Array, Tensors
from modelyard_deployments._gpu import gpu_share_mb

_LOG: Final = logging.getLogger(__name__)

DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""Datatypes by onnxruntime's type; it has others, which no protocol carries."""

_BFLOAT16: Final = 16
"""Source: ONNX ``TensorProto.DataType``."""
_SUFFIX: Final = "ExecutionProvider"
_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_WITH_GPU: Final = (_CUDA,)
_MIB: Final = 1024 * 1024
_FATAL: Final = 4
_ERROR: Final = 3
_OURS: Final = ("allocat", "CUDA", "CUBLAS", "CUDNN", "out of memory")
"""In the messages of failures that are not the inputs' fault."""
_CODE: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE: Final = re.compile(r"(?:/onnxruntime_src/)?[\w./]+\.(?:cc|h):\d+ (?:.*\) (?=[A-Z])|\w+ )?")


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How to compute; the names are those of the options."""

    threads: int = 1
    inter_op_threads: int = 1
    optimization: str = "all"
    providers: tuple[str, ...] = ()
    provider_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    free_dimensions: Mapping[str, int] = field(default_factory=dict)


def choose_providers(wanted: Sequence[str], available: Sequence[str], has_gpu: bool) -> list[str]:
    """Execution providers in the order of preference; the CPU is always the last.

    TensorRT is not chosen unless it is named: it spends minutes on each new shape.

    Args:
        wanted: As the user names them, ``cuda`` or ``CUDAExecutionProvider``; none leaves the choice to us.
        available: What this build of onnxruntime has.
        has_gpu: The replica has been given one.

    Raises:
        ModelLoadError: One of those wanted is not available.
    """
    if not wanted:
        return [*(name for name in _WITH_GPU if has_gpu and name in available), _CPU]
    by_name = {name.lower(): name for name in available}
    chosen = []
    for name in wanted:
        found = by_name.get(name.lower()) or by_name.get(f"{name}{_SUFFIX}".lower())
        if found is None:
            raise ModelLoadError(
                f"option providers: expected some of {', '.join(available)}, which this build of onnxruntime has, "
                f'got "{name}"'
            )
        chosen.append(found)
    return list(dict.fromkeys([*chosen, _CPU]))


def open_session(source: Path | bytes, folder: Path, settings: SessionSettings, has_gpu: bool) -> OnnxSession:
    """Loads a graph.

    Args:
        source: The file, or the whole model.
        folder: Where files of weights are.
        settings: How to compute.
        has_gpu: The replica has been given one.

    Raises:
        ModelLoadError: A provider is not available or does not start.
        Exception: onnxruntime's, where it cannot load the graph; many classes without a common one.
    """
    import onnxruntime

    providers = choose_providers(settings.providers, onnxruntime.get_available_providers(), has_gpu)
    share_mb = gpu_share_mb() if _CUDA in providers else None
    options = find_options(providers, settings.provider_options, share_mb)
    is_on_cpu = providers == [_CPU]
    # Its errors are raised as well; only why a provider's library cannot be loaded is in the log alone.
    onnxruntime.set_default_logger_severity(_FATAL if is_on_cpu else _ERROR)
    if not is_on_cpu and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's libraries from Python packages
    session = onnxruntime.InferenceSession(
        source if isinstance(source, bytes) else str(source),
        _to_session_options(settings, folder, isinstance(source, bytes)),
        providers=[(name, options[name]) for name in providers],
        enable_fallback=0,  # which prints, and hides that a provider is missing
    )
    missing = [name for name in providers if name not in session.get_providers()]
    if missing and settings.providers:
        raise ModelLoadError(f"option providers: {', '.join(missing)} cannot be started; the replica's log says why")
    if missing:
        _LOG.warning("%s cannot be started, so the model computes on the CPU", ", ".join(missing))
    return OnnxSession(session)


def find_options(
    providers: Sequence[str], options: Mapping[str, Mapping[str, Any]], share_mb: int | None
) -> dict[str, dict[str, Any]]:
    """The options of each provider.

    Source: ONNX Runtime, "CUDA Execution Provider": the limit is that of its arena, which grows by doubling unless it
    is told to take what is asked for.

    Args:
        providers: Those that are used.
        options: What the user wants of them.
        share_mb: MiB of a GPU's memory that are ours; None for all.

    Raises:
        ModelLoadError: Some are for a provider that is not used.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in providers}
    for name, values in options.items():
        provider = next((one for one in providers if one.lower() in (name.lower(), f"{name}{_SUFFIX}".lower())), None)
        if provider is None:
            raise ModelLoadError(f'option provider_options: {", ".join(providers)} are used, got "{name}"')
        found[provider] = dict(values)
    if _CUDA in found and share_mb is not None:
        limits = {"gpu_mem_limit": share_mb * _MIB, "arena_extend_strategy": "kSameAsRequested"}
        found[_CUDA] = limits | found[_CUDA]
    return found


def _to_session_options(settings: SessionSettings, folder: Path, from_bytes: bool) -> Any:
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL  # errors are raised as well
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = settings.inter_op_threads
    if settings.inter_op_threads > 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.graph_optimization_level = {
        "disabled": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[settings.optimization]
    for name, size in settings.free_dimensions.items():
        options.add_free_dimension_override_by_name(name, size)
        options.add_free_dimension_override_by_denotation(name, size)
    if from_bytes:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return options


class OnnxSession:
    """A loaded graph; any number of threads may run it at once.

    Attributes:
        inputs: What it must be given.
        defaults: Inputs that may be left out: initializers that are inputs too.
        types: onnxruntime's type of each output.
        outputs: Those that are tensors of a datatype of ours; an unknown rank is given as no dimensions.
    """

    def __init__(self, session: Any) -> None:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        self._session = session
        self._faults = (state.InvalidArgument, state.Fail, state.RuntimeException)
        self.inputs = tuple(_to_spec(node) for node in session.get_inputs())
        self.defaults = tuple(_to_spec(node, optional=True) for node in session.get_overridable_initializers())
        self.types = {node.name: node.type for node in session.get_outputs()}
        self.outputs = tuple(_to_spec(node) for node in session.get_outputs() if node.type in DATATYPES)
        datatypes = {spec.datatype for spec in (*self.inputs, *self.defaults, *self.outputs)}
        self._has_bfloat16 = "BF16" in datatypes
        self._texts = tuple(spec.name for spec in (*self.inputs, *self.defaults) if spec.datatype == "BYTES")

    def run(self, outputs: Sequence[str], inputs: Tensors) -> list[Array]:
        """Computes the outputs.

        Raises:
            InvalidRequest: A text is not UTF-8, or a node refuses values or dimensions.
        """
        if self._texts:
            inputs = {**inputs, **{name: _to_texts(name, inputs[name]) for name in self._texts if name in inputs}}
        try:
            if self._has_bfloat16:
                return self._run_values(outputs, inputs)
            answers: list[Array] = self._session.run(outputs, inputs)
        except self._faults as exc:
            if is_inputs_fault(str(exc)):
                raise InvalidRequest(f"the inputs do not fit the model: {to_reason(exc)}") from exc
            raise
        return answers

    def _run_values(self, outputs: Sequence[str], inputs: Tensors) -> list[Array]:
        """The way of bfloat16, which numpy arrays of onnxruntime do not have; copies."""
        import onnxruntime

        values = {name: _to_value(onnxruntime.OrtValue, array) for name, array in inputs.items()}
        return [_to_array(value) for value in self._session.run_with_ort_values(outputs, values)]


def is_inputs_fault(message: str) -> bool:
    """Whether a run failed for what it was given: the graph was checked when it was loaded."""
    if any(word in message for word in _OURS):
        return False
    return "INVALID_ARGUMENT" in message or "while running" in message


def _to_spec(node: Any, optional: bool = False) -> TensorSpec:
    if node.type not in DATATYPES:
        raise ModelLoadError(f'input "{node.name}": {node.type} is nothing that a client can send')
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    return TensorSpec(node.name, DATATYPES[node.type], shape, optional)


def _to_texts(name: str, array: Array) -> Array:
    """The bytes as str, the only texts that onnxruntime takes as they are."""
    try:
        texts = [item.decode() for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f'input "{name}": expected UTF-8 text, got {exc.object[:20]!r}') from exc
    out = np.empty(len(texts), dtype=object)
    out[:] = texts
    return out.reshape(array.shape)


def _to_value(kind: Any, array: Array) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        bits = np.asarray(array, order="C").view(np.uint16)
        return kind.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
    return kind.ortvalue_from_numpy(array)


def _to_array(value: Any) -> Array:
    """A copy."""
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.empty(shape, dtype=ml_dtypes.bfloat16)
    raw = ctypes.string_at(value.data_ptr(), count * 2)
    copied: Array = np.frombuffer(raw, dtype=ml_dtypes.bfloat16).reshape(shape)
    return copied


def to_reason(exc: Exception, path: Path | None = None) -> str:
    """The library's message without its codes, its source files and our folders."""
    text = _CODE.sub("", str(exc))
    if path is not None:
        text = text.replace(f"Load model from {path} failed:", "").replace(f"{path.parent}/", "")
        text = text.replace(str(path.parent), "the model's folder")
    return " ".join(_SOURCE.sub("", text).split()) or type(exc).__name__
