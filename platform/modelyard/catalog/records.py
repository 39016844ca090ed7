# SPDX-License-Identifier: Apache-2.0
"""What the catalog gives out: immutable pictures of its rows at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from modelyard.rollout import Rollout, Shadow


class Owner(StrEnum):
    """Who decides about a model; nobody else may change it, unless it says so here."""

    DECLARED = "declared"
    """The configuration file."""
    REGISTERED = "registered"
    """The Python API, the admin API, the CLI."""
    RELOADED = "reloaded"
    """A list of models that a client of TensorFlow Serving has sent. Whoever may register may change it too."""


class Wanted(StrEnum):
    """What should be true of a model; the controller makes it so."""

    SERVING = "serving"
    UNLOADED = "unloaded"
    """It stays with its revisions, and nothing of it runs until it is loaded again."""
    REMOVED = "removed"
    """To be drained and taken down, then purged from the catalog."""


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """One immutable revision.

    Attributes:
        model: Its model.
        number: 1, 2, 3 … per model, or as the artifact numbers them; what the protocols call version.
        digest: Identity of ``content`` and artifact.
        content: ``ModelSpec.revision_content()`` at the time.
        created_at: ISO 8601, UTC.
        actor: Who made it.
        message: Why.
        promoted_at: When it last got all traffic, ISO 8601, UTC; None before it ever did.
    """

    model: str
    number: int
    digest: str
    content: Mapping[str, Any]
    created_at: str
    actor: str
    message: str
    promoted_at: str | None = None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model with the revisions in use.

    Attributes:
        name: The model.
        owner: Who may change it.
        spec: The full ``ModelSpec`` as JSON.
        wanted: What should be true of it.
        generation: Counts changes; for optimistic concurrency.
        created_at: ISO 8601, UTC.
        updated_at: ISO 8601, UTC.
        revisions: Those that carry traffic or a label, by number; the whole history is ``Catalog.list_revisions``.
        traffic: Percent by revision number; sums to 100. Those with 0 are served to who asks for them.
        labels: Revision number by label.
        latest: The revision with the highest number, in use or not; None where the catalog has lost them.
        rollout: The one that is on its way, or the last one; None before the first.
        shadow: Which revision gets copies of the requests; None for none.
        problem: Why the row cannot be used, as far as the catalog can tell; empty where it can.
    """

    name: str
    owner: Owner
    spec: Mapping[str, Any]
    wanted: Wanted
    generation: int
    created_at: str
    updated_at: str
    revisions: tuple[RevisionRecord, ...]
    traffic: Mapping[int, float]
    labels: Mapping[str, int]
    latest: RevisionRecord | None = None
    rollout: Rollout | None = None
    shadow: Shadow | None = None
    problem: str = ""

    @property
    def is_versioned(self) -> bool:
        """Its revisions are the versions of a folder, and have the numbers that they have there."""
        located = self.latest.content.get("uri") if self.latest is not None else None
        return bool(self.spec.get("version_policy")) or located != self.spec.get("uri", located)

    @property
    def own_labels(self) -> Mapping[str, int]:
        """Those of its version policy, which stay where that points."""
        policy = self.spec.get("version_policy")
        labels: Mapping[str, int] = policy.get("labels", {}) if isinstance(policy, Mapping) else {}
        return labels

    @property
    def is_rolling_out(self) -> bool:
        """A rollout is on its way."""
        return self.rollout is not None and self.rollout.is_active

    @property
    def active(self) -> RevisionRecord:
        """The revision with the most traffic; the newest of equals."""
        return max(self.revisions, key=lambda revision: (self.traffic.get(revision.number, 0.0), revision.number))


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Who changed what, when and why.

    Attributes:
        id: Grows with time.
        at: ISO 8601, UTC.
        model: The model, which may be gone.
        kind: ``created``, ``revised``, ``changed``, ``restored``, ``loaded``, ``unloaded``, ``removed``, ``purged``,
            ``refused``, ``rollout``, ``step``, ``paused``, ``resumed``, ``promoted``, ``rolled_back``, ``traffic``,
            ``label``; ``ready`` and ``failed`` of a revision.
        actor: Who.
        message: Why.
        detail: What, as JSON.
    """

    id: int
    at: str
    model: str
    kind: str
    actor: str
    message: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One version of a model whose revisions have the numbers that its artifact gives them.

    Attributes:
        number: The version.
        content: ``ModelSpec.revision_content()`` of it.
        digest: ``ModelSpec.revision_digest(…)`` of it.
    """

    number: int
    content: Mapping[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model as it should be.

    Attributes:
        name: The model.
        spec: ``ModelSpec.to_json()``.
        content: ``ModelSpec.revision_content()``.
        digest: ``ModelSpec.revision_digest(…)``.
        versions: Where its artifact numbers the revisions: all that are to be served, by number; the last is the
            active one, and ``content`` and ``digest`` are its.
        labels: Numbers of such versions by label; ``stable`` is the active one unless it is here.
    """

    name: str
    spec: Mapping[str, Any]
    content: Mapping[str, Any]
    digest: str
    versions: tuple[VersionEntry, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
