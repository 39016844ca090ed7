# SPDX-License-Identifier: Apache-2.0
"""What managing models speaks of: the status of a model and the verbs, shared by REST, client, CLI and controller.

No I/O: ``serve/`` implements the verbs inside the cluster, ``client`` over HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NotRequired, Protocol, Self, TypedDict, Unpack

from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.rollout import Rollout, Shadow
from modelyard.scaling import Decision
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
        reason: Why it is in this state; empty when ready, unless it is scaled to zero.
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
        traffic: Percent by revision; those with 0 run for who asks for them.
        labels: Revision by label.
        rollout: The one on its way, or the last one.
        shadow: Which revision gets copies of the requests.
        scaling: What was last decided of its number of replicas, and why; only where one model is asked for.
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
    traffic: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    rollout: Rollout | None = None
    shadow: Shadow | None = None
    scaling: Decision | None = None

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
            "traffic": dict(self.traffic),
            "labels": dict(self.labels),
            "rollout": self.rollout.to_dict() if self.rollout is not None else None,
            "shadow": self.shadow.to_dict() if self.shadow is not None else None,
            "scaling": asdict(self.scaling) if self.scaling is not None else None,
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
        known["rollout"] = Rollout.from_dict(data["rollout"]) if data.get("rollout") else None
        known["shadow"] = Shadow.from_dict(data["shadow"]) if data.get("shadow") else None
        known["scaling"] = Decision.from_dict(data["scaling"]) if data.get("scaling") else None
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


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision in the history of a model.

    Attributes:
        number: What the protocols call version.
        digest: Identity of what it is made of.
        created_at: ISO 8601, UTC.
        actor: Who made it.
        message: Why.
        promoted_at: When it last got all traffic, ISO 8601, UTC; empty before it ever did.
        traffic: Percent it has; None for one that does not run.
        labels: Those that point at it.
        state: A value of :class:`ModelState` for one that runs; empty for the others.
        reason: Why it is not ready.
        changed: What differs from the revision before, by key: before and after. What may hold secrets has neither.
    """

    number: int
    digest: str
    created_at: str
    actor: str = ""
    message: str = ""
    promoted_at: str = ""
    traffic: float | None = None
    labels: tuple[str, ...] = ()
    state: str = ""
    reason: str = ""
    changed: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the admin API."""
        return asdict(self) | {"labels": list(self.labels), "changed": {k: list(v) for k, v in self.changed.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; keys it does not know (a newer server's) are ignored.

        Raises:
            KeyError: A key without a default is missing.
        """
        known = {key: data[key] for key in cls.__slots__ if key in data}
        known |= {key: data[key] for key in ("number", "digest", "created_at")}
        return cls(**known | {"labels": tuple(data.get("labels", ()))})


@dataclass(frozen=True, slots=True)
class PoolProcess:
    """What one process of a pool has done since it started.

    Attributes:
        name: The replica.
        loaded: Models that are loaded now.
        memory_mb: Memory that it takes, in MiB.
        memory_limit_mb: Memory that it may take.
        hits: Calls that found their model loaded.
        misses: Calls that waited for it.
        loads: Models that were loaded.
        evictions: Models that made room for others.
        load_p50_ms: Half of its last loads took less.
        load_p99_ms: One of a hundred of its last loads took more.
    """

    name: str
    loaded: int
    memory_mb: int
    memory_limit_mb: int
    hits: int
    misses: int
    loads: int
    evictions: int
    load_p50_ms: float
    load_p99_ms: float


@dataclass(frozen=True, slots=True)
class Pool:
    """Where models with ``shared: true`` live.

    Attributes:
        name: Its Serve application.
        revisions: How many live in it, loaded or not.
        replicas: Its processes, those that answer.
    """

    name: str
    revisions: int
    replicas: tuple[PoolProcess, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the admin API."""
        return asdict(self) | {"replicas": [asdict(one) for one in self.replicas]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; keys it does not know (a newer server's) are ignored.

        Raises:
            KeyError: A key is missing.
        """
        replicas = tuple(PoolProcess(**{key: one[key] for key in PoolProcess.__slots__}) for one in data["replicas"])
        return cls(data["name"], data["revisions"], replicas)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a model.

    Attributes:
        id: Grows with time.
        at: ISO 8601, UTC.
        model: The model, which may be gone.
        kind: ``created``, ``revised``, ``step``, ``promoted``, ``rolled_back``, ``traffic`` and so on.
        actor: Who.
        message: Why.
        detail: What, as JSON.
    """

    id: int
    at: str
    model: str
    kind: str
    actor: str = ""
    message: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the admin API."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; keys it does not know are ignored.

        Raises:
            KeyError: A key without a default is missing.
        """
        known = {key: data[key] for key in cls.__slots__ if key in data}
        return cls(**known | {key: data[key] for key in ("id", "at", "model", "kind")})


class Action(StrEnum):
    """What registering a model does."""

    CREATE = "create"
    """A model of its own, with revision 1."""
    REVISE = "revise"
    """The next revision."""
    CHANGE = "change"
    """Settings, in place."""
    LOAD = "load"
    """The revision there is runs again, or is tried again, with the settings as they are given."""
    NOTHING = "nothing"
    """All is so already."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What registering a model would do.

    Attributes:
        name: The model.
        action: What would be done.
        revision: Number of the revision that this would be about.
        generation: Of the model as it is now; 0 for one that is new.
        changed: What would differ, by key: before and after. What may hold secrets has neither.
        rollout: How a new revision would get its traffic; None where it has it at once, or where there is none.
    """

    name: str
    action: Action
    revision: int
    generation: int = 0
    changed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    rollout: Rollout | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the admin API."""
        return {
            "name": self.name,
            "action": self.action.value,
            "revision": self.revision,
            "generation": self.generation,
            "changed": {key: list(value) for key, value in self.changed.items()},
            "rollout": self.rollout.to_dict() if self.rollout is not None else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; keys it does not know (a newer server's) are ignored.

        Raises:
            KeyError: A key without a default is missing.
            ValueError: The action is not one of :class:`Action`.
        """
        known = {key: data[key] for key in cls.__slots__ if key in data}
        known |= {"name": data["name"], "action": Action(data["action"]), "revision": data["revision"]}
        return cls(**known | {"rollout": Rollout.from_dict(data["rollout"]) if data.get("rollout") else None})


def _tensor_to_dict(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _tensor_from_dict(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(data["name"], data["datatype"], tuple(data["shape"]))


class By(TypedDict):
    """Who changes a model, why, and what they know of it.

    Attributes:
        actor: Who they say they are.
        message: Why, for the history.
        expected_generation: The generation of the model that the change is for: ``Conflict`` where it has another by
            now. Left out or None, any. 0 is that of a model that is not there yet.
        dry_run: Nothing is changed: what is answered and raised is what it would be. Registering has a plan for that.
    """

    actor: str
    message: str
    expected_generation: NotRequired[int | None]
    dry_run: NotRequired[bool]


class AdminTransport(Protocol):
    """How the client reaches a platform: over HTTP, or by handle inside the cluster.

    Every method raises the errors of ``modelyard.errors`` as the platform raised them. What changes a model takes
    :class:`By`, and also raises ``Conflict`` where the model is at another generation than the one that is expected.
    """

    async def register(self, spec: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        """Creates the model or changes it to ``spec``; returns when the catalog has it, not when it is ready.

        Args:
            spec: A ``ModelSpec`` as JSON.
            **by: Who asks, and why.

        Returns:
            The status after the change. Its ``version`` and ``state`` speak of the new revision.

        Raises:
            InvalidConfig: Something in it is wrong.
            Forbidden: Its artifact is outside the allowed locations.
            Conflict: The name belongs to another owner.
        """

    async def plan(self, spec: Mapping[str, Any], *, expected_generation: int | None = None) -> Plan:
        """What :meth:`register` would do and raise; nothing is changed."""

    async def spec(self, name: str) -> dict[str, Any]:
        """The model as the configuration file would have it, without what is a default.

        Raises:
            ModelNotFound: There is none of that name.
            ModelLoadError: Its entry in the catalog cannot be used.
            Conflict: It is being removed.
        """

    async def unregister(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """Takes the model away: it drains first, then ``status`` raises ``ModelNotFound``."""

    async def load(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """Wants the model to run, with its artifact as it now is; returns when the catalog has it.

        Changed contents make the next revision, and a model that has failed is tried again. For one that runs with
        these very contents nothing changes.

        Raises:
            ModelNotFound: There is none of that name.
            ModelLoadError: Its artifact is not there any more; what ran goes on running.
            Conflict: It is being removed.
        """

    async def unload(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """Wants nothing of the model to run until it is loaded again; it answers what it has accepted first.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It is being removed.
        """

    async def set_traffic(self, name: str, change: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        """Sends a model's traffic elsewhere.

        Args:
            name: The model.
            change: ``weights``, percent by revision (number or label), whole tenths and 100 in sum; a revision with 0
                runs for who asks for it. ``shadow``, an object with ``revision``, ``percent`` and ``tolerance``, or
                None for no shadow. What is left out stays.
            **by: Who asks, and why.

        Raises:
            InvalidConfig: The change is none.
            ModelNotFound: There is no such model or revision.
            Conflict: A rollout is on its way, or the model is not running.
        """

    async def set_label(self, name: str, label: str, revision: str | None, **by: Unpack[By]) -> ModelStatus:
        """Points a label of one's own at a revision (number or label); None takes the label away.

        Raises:
            InvalidConfig: The label follows the traffic (``stable``, ``canary``, ``shadow``), or cannot be one.
            ModelNotFound: There is no such model, revision or label.
            Conflict: The model is not running, or its labels are its version policy's.
        """

    async def rollout(self, name: str, plan: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        """Brings a revision on its way to all traffic, in steps.

        Args:
            name: The model.
            plan: ``to``, the revision (number or label), and the keys of ``rollout`` in the configuration file; those
                left out are the model's own.
            **by: Who asks, and why.

        Raises:
            InvalidConfig: The plan is none.
            ModelNotFound: There is no such model or revision.
            Conflict: The revision has all traffic already, or the model is not running.
        """

    async def promote(self, name: str, revision: str | None, **by: Unpack[By]) -> ModelStatus:
        """Gives a revision (number or label) all traffic as soon as it is ready; None means that of the rollout.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: There is nothing to promote, or the model is not running.
        """

    async def rollback(self, name: str, revision: str | None, **by: Unpack[By]) -> ModelStatus:
        """Takes the rollout on its way back; without one, returns to the revision that had all traffic before.

        A revision (number or label) that is named is returned to in any case.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: There is nothing to return to, or the model is not running.
        """

    async def abort(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """Takes the rollout on its way back: its revision loses its traffic.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It has no rollout on its way.
        """

    async def pause(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """Keeps the rollout on its way at its step, where its gates go on holding; one that waits does not begin.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It has no rollout on its way, or that is paused.
        """

    async def resume(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """Lets a paused rollout go on.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It has no rollout that is paused.
        """

    async def revisions(self, name: str) -> tuple[Revision, ...]:
        """The history of a model, newest first.

        Raises:
            ModelNotFound: There is none of that name.
        """

    async def pools(self) -> tuple[Pool, ...]:
        """Where models with ``shared: true`` live, by name."""

    async def events(self, name: str | None, *, after: int | None, limit: int) -> tuple[Event, ...]:
        """What happened.

        Args:
            name: To this model only, which may be gone; None for all.
            after: Id of an event: those after it, oldest first, as soon as there is one, or none after some seconds.
                None: the latest, newest first, at once.
            limit: How many at most.
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
