# SPDX-License-Identifier: Apache-2.0
"""A model of Triton's python backend on the platform: the same ``model.py``, the signature out of ``config.pbtxt``."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

import modelyard
from modelyard.errors import InvalidRequest
from modelyard.signature import Signature, TensorSpec


class TritonModel(modelyard.Model):
    """One folder of a Triton model repository."""

    signature = Signature((), ())

    def load(self, path: Path, settings: Mapping[str, Any]) -> None:
        config = text_format.Parse((path / "config.pbtxt").read_text(), pb.ModelConfig())
        self.signature = to_signature(config, path)
        spec = importlib.util.spec_from_file_location(config.name, path / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._model = module.TritonPythonModel()
        if hasattr(self._model, "initialize"):
            self._model.initialize({})

    def predict(self, inputs, outputs, parameters):
        (response,) = self._model.execute([pb_utils.Request(inputs, outputs, parameters)])
        return to_tensors(response)

    def stream(self, inputs, outputs, parameters) -> Iterator[Mapping[str, Any]]:
        """The model sends when it likes; a thread of its own turns that into answers which are asked for."""
        sent: queue.SimpleQueue = queue.SimpleQueue()
        request = pb_utils.Request(inputs, outputs, parameters, pb_utils.Sender(sent.put))

        def run() -> None:
            try:
                self._model.execute([request])
                sent.put(None)
            except Exception as exc:  # noqa: BLE001  # whatever the model raises, raised where it is waited for
                sent.put(exc)

        threading.Thread(target=run).start()
        while (answer := sent.get()) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield to_tensors(answer)


def to_tensors(response: pb_utils.InferenceResponse) -> dict[str, Any]:
    if response.error is not None:
        if response.error.code == pb_utils.TritonError.INVALID_ARG:
            raise InvalidRequest(str(response.error))
        raise response.error
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors}


def to_signature(config: pb.ModelConfig, path: Path) -> Signature:
    batched = config.max_batch_size > 0
    return Signature(
        inputs=tuple(to_spec(tensor, batched, tensor.optional) for tensor in config.input),
        outputs=tuple(to_spec(tensor, batched) for tensor in config.output),
        batch_axis=batched,
        exact_datatypes=True,
        decoupled=config.model_transaction_policy.decoupled,
        labels={
            output.name: tuple((path / output.label_filename).read_text().split())
            for output in config.output
            if output.label_filename
        },
    )


def to_spec(tensor: Any, batched: bool, optional: bool = False) -> TensorSpec:
    datatype = pb.DataType.Name(tensor.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
    return TensorSpec(tensor.name, datatype, ((-1,) if batched else ()) + tuple(tensor.dims), optional)
