# SPDX-License-Identifier: Apache-2.0
"""PaddlePaddle: inference programs, ``.json`` (PIR, since 3.0) or ``.pdmodel``, with their ``.pdiparams``.

Inputs and outputs have the program's names, datatypes and shapes. Requests share a batch where the first dimension of
all of them is free and an output has as many rows as the inputs.

The library holds Python's lock while it computes, so one replica predicts once at a time, and more replicas are the
way to use more cores; the option ``threads`` is for single large predictions.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

import ml_dtypes
import numpy as np
from pydantic import Field

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature
from modelyard.tensor import Array, Parameters, Tensors, datatype_of
from modelyard_deployments._gpu import gpu_share_mb, has_gpu
from modelyard_deployments._paddle_files import Files, Program, check_params, find_files, read_program, to_reason
from modelyard_deployments._trial import show_example, try_out

_LOG: Final = logging.getLogger(__name__)
_COPIED: Final = frozenset({"BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64"})
"""What the handles of the inference interface copy; anything else they convert, or refuse, without a word."""
_FAULTS: Final = ("InvalidArgument", "OutOfRange")
_WORDLESS: Final = "std::exception"
"""All that is told of what oneDNN cannot compute."""
_GPU_POOL_MB: Final = 100
"""To begin with; it grows."""
_SIGACTION_BYTES: Final = 256
_LIMIT: Final = "FLAGS_gpu_memory_limit_mb"
"""What a process may allocate on a GPU; read when the library is loaded. Source: Paddle ``paddle/common/flags.cc``."""


class PaddleOptions(Options):
    """Options of a PaddlePaddle model."""

    threads: int = Field(default=1, ge=1, description="Threads of one prediction; more help only large batches.")
    onednn: bool | None = Field(
        default=None,
        description=(
            "Compute with oneDNN on a CPU; null: where the program has convolutions. Elsewhere it is several times "
            "slower, and without it an image smaller than a convolution's kernel can end the replica."
        ),
    )


class PaddleModel(Model):
    """A loaded program."""

    def __init__(self, predictor: Any, program: Program) -> None:
        self._predictor = predictor
        self._lock = threading.Lock()  # one set of input and output buffers
        self._specs = {spec.name: spec for spec in program.outputs}
        self._copies = all(spec.datatype in _COPIED for spec in (*program.inputs, *program.outputs))
        self._inputs = {name: predictor.get_input_handle(name) for name in predictor.get_input_names()}
        self._outputs = {name: predictor.get_output_handle(name) for name in predictor.get_output_names()}
        self._has_sizes = any(-1 in spec.shape[1:] for spec in program.inputs)
        self._signature = _to_signature(self, program)

    @property
    def signature(self) -> Signature:
        """As the program says; whether rows may be batched as a trial says."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> dict[str, Array]:
        """Runs the program.

        Raises:
            InvalidRequest: An index is out of range, or variable dimensions do not fit the program or each other.
        """
        try:
            with self._lock:
                if not self._copies:
                    return self._run_on_tensors(inputs, outputs)
                for name, handle in self._inputs.items():
                    handle.copy_from_cpu(inputs[name])
                self._predictor.run()
                return {name: self._outputs[name].copy_to_cpu() for name in outputs}
        except (ValueError, IndexError, RuntimeError) as exc:
            reason = self._find_client_fault(exc)
            if reason is None:
                raise
            raise InvalidRequest(f"the inputs do not fit the model: {reason}") from exc

    def _find_client_fault(self, exc: Exception) -> str | None:
        """A sentence where values or variable dimensions are at fault; None where the model itself failed."""
        if self._has_sizes and str(exc).strip() == _WORDLESS:
            return "a variable dimension is too small for its convolutions"
        return to_reason(exc) if any(fault in str(exc) for fault in _FAULTS) else None

    def _run_on_tensors(self, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        """The way of datatypes that the handles do not copy; twice as long for one row."""
        answers = self._predictor.run([_to_tensor(inputs[name]) for name in self._inputs])
        by_name = dict(zip(self._outputs, answers, strict=True))
        return {name: _to_array(by_name[name], self._specs[name].datatype) for name in outputs}


def _to_tensor(array: Array) -> Any:
    import paddle

    if array.dtype == ml_dtypes.bfloat16:  # which Paddle takes in 16-bit integers
        return paddle.to_tensor(np.ascontiguousarray(array).view(np.uint16), dtype="bfloat16")
    return paddle.to_tensor(array)


def _to_array(tensor: Any, datatype: str) -> Array:
    array: Array = tensor.numpy()
    return array.view(ml_dtypes.bfloat16) if datatype == "BF16" else array


def _to_signature(model: PaddleModel, program: Program) -> Signature:
    """The program's own, with what it answers to made-up rows.

    Raises:
        Exception: It cannot run at all; what Paddle raises.
    """
    names = tuple(spec.name for spec in program.outputs)
    trial = try_out(lambda rows: model.predict(rows, names, {}), program.inputs)
    is_free = all(spec.shape[:1] == (-1,) for spec in (*program.inputs, *program.outputs))
    if not trial.answers:
        _LOG.warning("the program takes none of the rows tried, so its signature is as declared: %s", trial.reason)
        return Signature(program.inputs, program.outputs, batch_axis=is_free)
    outputs = tuple(replace(spec, datatype=datatype_of(trial.answers[spec.name])) for spec in program.outputs)
    batch_axis = is_free and trial.has_rows
    example = show_example(program.inputs, trial, batch_axis)
    return Signature(program.inputs, outputs, batch_axis=batch_axis, example=example)


class PaddleFramework(Framework):
    """Loads a program and its parameters into an inference predictor."""

    options: ClassVar[type[Options]] = PaddleOptions
    requires: ClassVar[str] = "paddle"
    distribution: ClassVar[str] = "paddlepaddle"

    def load(self, path: Path, options: PaddleOptions) -> PaddleModel:
        """Finds the two files, checks them, and makes the predictor; on a GPU where the replica has one.

        Raises:
            ModelLoadError: A file is missing, damaged or of another kind, or this version cannot run the program.
        """
        share_mb = gpu_share_mb()
        if share_mb is not None:
            os.environ.setdefault(_LIMIT, str(share_mb))
        with _left_alone():
            import paddle
        files = find_files(path)
        program = read_program(files.program)
        check_params(files, program)
        onednn = program.has_convolutions if options.onednn is None else options.onednn
        try:
            return PaddleModel(_make_predictor(files, options.threads, onednn), program)
        except Exception as exc:  # C++ errors come as RuntimeError, ValueError, IndexError, OSError and more
            raise ModelLoadError(
                f"{files.program.name}: PaddlePaddle {paddle.__version__} cannot run this model: {to_reason(exc)}"
            ) from exc


def _make_predictor(files: Files, threads: int, onednn: bool) -> Any:
    import paddle
    from paddle import inference

    config = inference.Config(str(files.program), "" if files.params is None else str(files.params))
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    # Memory optimisation stays off: it breaks PIR programs.
    if has_gpu() and paddle.device.is_compiled_with_cuda():
        config.enable_use_gpu(_GPU_POOL_MB, 0)
    elif not onednn:
        config.disable_mkldnn()
    return inference.create_predictor(config)


@contextlib.contextmanager
def _left_alone() -> Iterator[None]:
    """Keeps the process's signal handlers, and its log, from Paddle's import.

    Paddle takes over SIGTERM and ends the process at once, with a traceback: a replica could not stop in order.
    Handlers set in C cannot be had from Python, so they are kept as the bytes that ``sigaction`` gives.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")
    libc = ctypes.CDLL(None)
    numbers = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
    kept = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in numbers}
    for number, action in kept.items():
        libc.sigaction(int(number), None, action)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a compiler's cache
            yield
    finally:
        for number, action in kept.items():
            libc.sigaction(int(number), action, None)
