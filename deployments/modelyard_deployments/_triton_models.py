# SPDX-License-Identifier: Apache-2.0
"""The models of a Triton: what they take and give, by their metadata and configuration, and how they answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from modelyard.errors import ModelLoadError
from modelyard.model import Model
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array, Parameters, Tensors
from modelyard_deployments._triton_calls import Connection, Endpoint, encode, open_channel
from modelyard_deployments._triton_reasons import clean_reason

_ASK_S: Final = 30.0
_READY: Final = "READY"
_UNLOADED: Final = "unloaded"
_CONCURRENCY: Final = 1024


@dataclass(frozen=True, slots=True)
class Contents:
    """What a Triton has.

    Attributes:
        models: Those that it can answer for, by name.
        failed: Why not, of the others that it has tried to load.
    """

    models: Mapping[str, TritonModel]
    failed: Mapping[str, str]


class TritonModel(Model):
    """One model of a Triton, which merges requests itself: as many as there are are sent on at once.

    Args:
        name: Its name there.
        signature: What it takes and gives.
        max_rows: Rows in one request at most; 0 where it has no batch axis.
        connection: To its Triton.
    """

    concurrency = _CONCURRENCY

    def __init__(self, name: str, signature: Signature, max_rows: int, connection: Connection) -> None:
        self._name = name
        self._signature = signature
        self._max_rows = max_rows if signature.batch_axis else 0
        self._connection = connection

    @property
    def signature(self) -> Signature:
        """As its metadata and configuration have it."""
        return self._signature

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Sends the rows on; more of them than Triton takes at once in several requests.

        Raises:
            ModelyardError: The request does not fit, or Triton cannot answer now.
            TritonError: It failed.
        """
        rows = len(next(iter(inputs.values()))) if self._max_rows else 0
        if rows <= self._max_rows:
            return await self._connection.infer(encode(self._name, inputs, outputs, parameters))
        parts = [
            {name: array[start : start + self._max_rows] for name, array in inputs.items()}
            for start in range(0, rows, self._max_rows)
        ]
        calls = [self._connection.infer(encode(self._name, part, outputs, parameters)) for part in parts]
        answers = await asyncio.gather(*calls)
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    async def stream(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> AsyncGenerator[Mapping[str, Array]]:
        """Each answer of a decoupled model as it comes.

        Raises:
            ModelyardError: As :meth:`predict`.
            TritonError: As :meth:`predict`.
        """
        answers = self._connection.stream(encode(self._name, inputs, outputs, parameters))
        try:
            async for answer in answers:
                yield answer
        finally:
            await answers.aclose()


def read_contents(
    endpoint: Endpoint, connection: Connection, chosen: Sequence[str] | None, repository: Path | None
) -> Contents:
    """Asks a Triton what it has.

    Args:
        endpoint: Where it is.
        connection: For the models.
        chosen: Names of those that count; None for all.
        repository: Its model repository, for the files with names of classes; None where it is out of reach.

    Raises:
        ModelLoadError: It does not answer.
    """
    try:
        with open_channel(endpoint) as channel:
            return _Reader(endpoint, channel, repository).read(connection, chosen)
    except grpc.RpcError as exc:
        said = f"{exc.code().name}: {exc.details()}"
        if repository is not None:  # the replica's own, whose socket is nobody's business
            raise ModelLoadError(f"Triton does not answer: {said.replace(endpoint.target, 'its socket')}") from exc
        raise ModelLoadError(f"Triton at {endpoint.target} does not answer: {said}") from exc


class _Reader:
    def __init__(self, endpoint: Endpoint, channel: grpc.Channel, repository: Path | None) -> None:
        self._endpoint = endpoint
        self._calls: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._repository = repository

    def _ask(self, method: str, request: Any) -> Any:
        call = getattr(self._calls, method)
        return call(request, metadata=self._endpoint.metadata, timeout=_ASK_S)

    def read(self, connection: Connection, chosen: Sequence[str] | None) -> Contents:
        models: dict[str, TritonModel] = {}
        failed = dict.fromkeys(chosen or (), "there is no such model")
        for entry in self._ask("RepositoryIndex", pb.RepositoryIndexRequest()).models:
            if (chosen is not None and entry.name not in chosen) or entry.name in models:
                continue
            if entry.state != _READY:
                if entry.reason not in ("", _UNLOADED):
                    failed[entry.name] = clean_reason(entry.reason)
                continue
            try:
                models[entry.name] = self._read_model(entry.name, connection)
                failed.pop(entry.name, None)
            except ModelLoadError as exc:
                failed[entry.name] = exc.reason
        return Contents(models, failed)

    def _read_model(self, name: str, connection: Connection) -> TritonModel:
        config = self._ask("ModelConfig", pb.ModelConfigRequest(name=name)).config
        metadata = self._ask("ModelMetadata", pb.ModelMetadataRequest(name=name))
        return TritonModel(name, self._to_signature(metadata, config), config.max_batch_size, connection)

    def _to_signature(self, metadata: Any, config: Any) -> Signature:
        optional = {entry.name for entry in config.input if entry.optional}
        inputs = tuple(_to_spec(entry, optional) for entry in metadata.inputs)
        outputs = tuple(_to_spec(entry, set()) for entry in metadata.outputs)
        decoupled = config.model_transaction_policy.decoupled
        # Requests of one sequence come one after the other, each for itself.
        single = decoupled or config.HasField("sequence_batching") or config.max_batch_size == 0
        has_rows = all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
        return Signature(
            inputs=inputs,
            outputs=outputs,
            batch_axis=has_rows and not single,
            decoupled=decoupled,
            labels=self._read_labels(config),
        )

    def _read_labels(self, config: Any) -> dict[str, tuple[str, ...]]:
        """Names of the classes, one on each line. Source: Triton "Model Configuration", ``label_filename``."""
        if self._repository is None:
            return {}
        files = {one.name: self._repository / config.name / one.label_filename for one in config.output}
        return {
            name: tuple(file.read_text(errors="replace").splitlines()) for name, file in files.items() if file.is_file()
        }


def _to_spec(entry: Any, optional: set[str]) -> TensorSpec:
    if entry.datatype not in DATATYPES:
        raise ModelLoadError(f'tensor "{entry.name}": expected a datatype of the protocol, got {entry.datatype}')
    return TensorSpec(entry.name, entry.datatype, tuple(entry.shape), entry.name in optional)
