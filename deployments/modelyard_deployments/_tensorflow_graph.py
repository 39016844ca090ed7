# SPDX-License-Identifier: Apache-2.0
"""A SavedModel in one session of TensorFlow: how it is loaded and called, and TensorFlow's errors in our words.

A session, as TensorFlow Serving has it, and not ``tf.saved_model.load``: a call of one row takes a tenth of the time,
only what is asked for is computed, and models of TensorFlow 1 need nothing of their own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelyard.errors import ModelLoadError
from modelyard_deployments._gpu import gpu_share
from modelyard_deployments._tensorflow_start import import_tensorflow

_LOG: Final = logging.getLogger(__name__)
_IN_CALLER: Final = -1
"""A thread pool's number. Source: tensorflow ``config.proto``, ``RunOptions.inter_op_thread_pool``."""
_UNREADABLE: Final = "Cannot parse file"
_TAGS: Final = re.compile(r"available tags '\[(.*?)\]'")
_NODES: Final = re.compile(r"\s*\[\[\{\{.*", re.DOTALL)
_NODE: Final = re.compile(r"\{\{(?:function_node|node) [^}]*\}\}\s*")
_HOST: Final = re.compile(r" in binary running on .*", re.DOTALL)
_LONGEST: Final = 400


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """How to load and compute; the names are those of the options."""

    tags: tuple[str, ...] = ("serve",)
    threads: int = 1
    inter_op_threads: int = 1
    gpu_memory_mb: int | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """A loaded SavedModel; any number of threads may call it.

    Attributes:
        session: TensorFlow's.
        is_sequential: Operations are computed one after another, in the thread that calls.
    """

    session: Any
    is_sequential: bool

    def dtype_of(self, tensor: str) -> str:
        """TensorFlow's name of a tensor's type, ``float32``.

        Raises:
            KeyError: The graph has no such tensor.
            ValueError: It is no tensor's name.
        """
        return str(self.session.graph.get_tensor_by_name(tensor).dtype.base_dtype.name)

    def make_call(self, feeds: Sequence[str], fetches: Sequence[str]) -> Callable[..., list[Any]]:
        """What computes some tensors of others, given as arrays in their order; answers may be views on its memory."""
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        options = CallableOptions(feed=feeds, fetch=fetches)
        if self.is_sequential:
            options.run_options.inter_op_thread_pool = _IN_CALLER
        # Public methods make the same, with 120 µs of checks around each call.
        call: Callable[..., list[Any]] = self.session._make_callable_from_options(options)
        return call

    def close(self) -> None:
        """Frees the weights."""
        self.session.close()


def open_graph(folder: Path, settings: GraphSettings, has_gpu: bool) -> tuple[Graph, Any]:
    """Loads a SavedModel with its variables, tables and assets.

    Args:
        folder: The SavedModel's.
        settings: How.
        has_gpu: The replica has been given one.

    Returns:
        The graph, and TensorFlow's ``MetaGraphDef`` of it, which can be large.

    Raises:
        ModelLoadError: No graph has these tags.
        Exception: TensorFlow's, where it cannot load it; many classes without a common one.
    """
    tf = import_tensorflow()
    session = tf.compat.v1.Session(graph=tf.Graph(), config=_to_config(settings, has_gpu))
    if has_gpu and not any(device.device_type == "GPU" for device in session.list_devices()):
        _LOG.warning("TensorFlow finds no GPU that it can use, so the model computes on the CPU")
    try:
        definition = tf.compat.v1.saved_model.load(session, list(settings.tags), str(folder))
    except BaseException as exc:
        session.close()
        known = _TAGS.search(str(exc))
        if _UNREADABLE in str(exc) or (known and not known[1]):
            raise ModelLoadError("saved_model.pb: expected a SavedModel, got something else or a part of one") from exc
        if known:
            got = ", ".join(settings.tags)
            raise ModelLoadError(f"option tags: the graphs have the tags {known[1]}, got {{{got}}}") from exc
        raise
    return Graph(session, settings.inter_op_threads == 1), definition


def _to_config(settings: GraphSettings, has_gpu: bool) -> Any:
    from tensorflow.core.protobuf.config_pb2 import ConfigProto

    config = ConfigProto(
        intra_op_parallelism_threads=settings.threads,
        inter_op_parallelism_threads=settings.inter_op_threads,
        use_per_session_threads=settings.inter_op_threads > 1,
        allow_soft_placement=True,  # graphs that name a GPU compute on the CPU where there is none
    )
    if not has_gpu:
        config.device_count["GPU"] = 0
        return config
    config.gpu_options.allow_growth = True
    if settings.gpu_memory_mb is not None:
        config.gpu_options.experimental.virtual_devices.add(memory_limit_mb=[settings.gpu_memory_mb])
    elif gpu_share() < 1:
        config.gpu_options.per_process_gpu_memory_fraction = gpu_share()
    return config


def to_reason(exc: BaseException, folder: Path | None = None) -> str:
    """TensorFlow's message without its graph's nodes, the host's name and our folders."""
    text = getattr(exc, "message", None) or str(exc)
    if folder is not None:
        text = text.replace(f"{folder}/", "").replace(str(folder), "the model's folder")
    text = _NODE.sub("", _HOST.sub("", _NODES.sub("", text)))
    return " ".join(text.split())[:_LONGEST] or type(exc).__name__
