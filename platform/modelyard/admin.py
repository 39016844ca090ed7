# SPDX-License-Identifier: Apache-2.0
"""What managing models speaks of: the status of a model and the verbs, shared by REST, client, CLI and controller.

No I/O: ``serve/`` implements the verbs inside the cluster, ``client`` over HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, Self

from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.signature import TensorSpec


class ModelState(StrEnum):
    """Where a model's active revision is on its way."""

    PENDING = "pending"
    """Accepted; nothing runs yet, for example because no resources are free."""
    LOADING = "loading"
    """Replicas start."""
    READY = "ready"
    """Answers requests now."""
    FAILED = "failed"
    """Cannot load; ``reason`` says why."""
    UNLOADING = "unloading"
    """Answers what it has accepted; it takes nothing new."""
    UNLOADED = "unloaded"
    """Known, and nothing of it runs until it is loaded."""
    REMOVING = "removing"
    """Answers what it has accepted, then goes."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as an operator sees it.

    Attributes:
        name: The model.
        framework: Which framework loads it.
        uri: Where its artifact is.
        owner: ``declared`` in the configuration file, ``registered`` at run time, or ``reloaded`` from a list of models
            that a client of TensorFlow Serving has sent.
        state: State of the revision named by ``version``.
        reason: Why it is in this state; empty when ready.
        version: Number of the active revision; empty before there is one.
        replicas_ready: Replicas that can answer.
        replicas_wanted: Replicas there should be now.
        url_path: Where to send requests, below the platform's address.
        created_at: ISO 8601, UTC.
        updated_at: ISO 8601, UTC.
        inputs: What it takes; empty until known.
        outputs: What it answers; empty until known.
        message: What the last change was for, in the words of who made it.
        generation: Counts the changes of what is wanted of it.
        members: Names of its members: further signatures, or the models of a repository; empty for most.
        adapters: Further names that it answers to in the OpenAI protocol.
        properties: What else there is to know of it: which backend was picked, and why.
    """

    name: str
    framework: str
    uri: str
    owner: str
    state: ModelState
    reason: str = ""
    version: str = ""
    replicas_ready: int = 0
    replicas_wanted: int = 0
    url_path: str = ""
    created_at: str = ""
    updated_at: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    message: str = ""
    generation: int = 0
    members: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the admin API."""
        return {
            "name": self.name,
            "framework": self.framework,
            "uri": self.uri,
            "owner": self.owner,
            "state": self.state.value,
            "reason": self.reason,
            "version": self.version,
            "replicas_ready": self.replicas_ready,
            "replicas_wanted": self.replicas_wanted,
            "url_path": self.url_path,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "inputs": [_tensor_to_dict(spec) for spec in self.inputs],
            "outputs": [_tensor_to_dict(spec) for spec in self.outputs],
            "message": self.message,
            "generation": self.generation,
            "members": list(self.members),
            "adapters": list(self.adapters),
            "properties": dict(self.properties),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; keys it does not know (a newer server's) are ignored.

        Raises:
            KeyError: A key without a default is missing.
            ValueError: The state is not one of :class:`ModelState`.
        """
        known: dict[str, Any] = {key: data[key] for key in cls.__slots__ if key in data}
        known["state"] = ModelState(data["state"])
        known["inputs"] = tuple(_tensor_from_dict(item) for item in data.get("inputs", ()))
        known["outputs"] = tuple(_tensor_from_dict(item) for item in data.get("outputs", ()))
        known |= {key: tuple(data.get(key, ())) for key in ("members", "adapters")}
        for key in ("name", "framework", "uri", "owner"):
            known[key] = data[key]
        return cls(**known)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model as the index of a model repository has it.

    Attributes:
        name: The model.
        version: The version.
        state: ``READY``, ``LOADING``, ``UNLOADING`` or ``UNAVAILABLE``.
        reason: Why it is not ready; empty when it is.

    Source: Triton "Model Repository Extension", "Index".
    """

    name: str
    version: str
    state: str
    reason: str = ""


def _tensor_to_dict(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _tensor_from_dict(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(data["name"], data["datatype"], tuple(data["shape"]))


class AdminTransport(Protocol):
    """How the client reaches a platform: over HTTP, or by handle inside the cluster.

    Every method raises the errors of ``modelyard.errors`` as the platform raised them.
    """

    async def register(self, spec: Mapping[str, Any], *, actor: str, message: str) -> ModelStatus:
        """Creates the model or changes it to ``spec``; returns when the catalog has it, not when it is ready.

        Args:
            spec: A ``ModelSpec`` as JSON.
            actor: Who asks; over HTTP the platform knows that from the credentials and ignores this.
            message: Why, for the history.

        Returns:
            The status after the change. Its ``version`` and ``state`` speak of the new revision.
        """

    async def unregister(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """Takes the model away: it drains first, then ``status`` raises ``ModelNotFound``."""

    async def load(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """Wants the model to run, with its artifact as it now is; returns when the catalog has it.

        Changed contents make the next revision, and a model that has failed is tried again. For one that runs with
        these very contents nothing changes.

        Raises:
            ModelNotFound: There is none of that name.
            ModelLoadError: Its artifact is not there any more; what ran goes on running.
            Conflict: It is being removed.
        """

    async def unload(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """Wants nothing of the model to run until it is loaded again; it answers what it has accepted first.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It is being removed.
        """

    async def list(self) -> tuple[ModelStatus, ...]:
        """All models, by name."""

    async def status(self, name: str) -> ModelStatus:
        """One model.

        Raises:
            ModelNotFound: There is none of that name.
        """

    async def infer(
        self, name: str, version: str, request: InferenceRequest, *, timeout_s: float | None
    ) -> InferenceResponse:
        """One prediction.

        Args:
            name: The model.
            version: Revision number or label; empty for wherever the model's traffic goes.
            request: Named protocol arrays.
            timeout_s: Deadline; None for the platform's own.
        """

    async def close(self) -> None:
        """Frees connections; the transport is not used afterwards."""
