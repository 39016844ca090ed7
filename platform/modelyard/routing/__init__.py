# SPDX-License-Identifier: Apache-2.0
"""Which revision answers a request: immutable, versioned route tables and how a name resolves in them.

"One request": the controller makes a table from the catalog and the state of the applications; every ingress replica
resolves against the last one it has, also while the controller is away.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from modelyard.errors import ModelNotFound, ModelNotReady, SignatureNotFound
from modelyard.signature import DEFAULT_SIGNATURE, Signature

_MAX_SHOWN: Final = 80
PIN: Final = "x-modelyard-revision"
"""Header with the revision, by number or label, that is to answer."""
_LOTS: Final = 2**48
_chance: Final = random.Random()  # noqa: S311  # guards nothing


@dataclass(frozen=True, slots=True)
class RevisionRoute:
    """Where one revision is served, and what an ingress must know to call it.

    Attributes:
        model: Name of the model.
        version: The revision's number, as the protocols write it.
        application: Name of its Ray Serve application.
        framework: Name of its framework.
        state: A value of :class:`modelyard.admin.ModelState`.
        reason: Why it is not ready; empty when it is.
        signature: Known once a replica has loaded it.
        max_batch_size: Rows that may travel in one call.
        batch_wait_timeout_s: How long its replicas wait for a fuller batch, in seconds.
        max_inflight_requests: Requests that one ingress replica may hold at once, waiting or being answered.
        request_timeout_s: The longest a request may take, in seconds.
        replicas: Replicas that can answer.
        replica_names: Their names, of a model that speaks the OpenAI protocol: prompts that begin alike go to one.
        num_gpus: GPUs, or the part of one, that a replica has.
        members: Signatures of the model's members, by name.
        publishes_members: Its members are models of the platform.
        member: Which member of its application this is the route of; empty for the model itself.
        concurrency: Calls that a replica runs at once.
        openai_routes: What it answers of the OpenAI protocol; see ``openai.OpenAIModel``.
        adapters: Names of its adapters.
        adapter: Which of them this is the route of; empty for the model itself.
        is_watched: Somebody wants to know what becomes of its requests.
        shadow: Where copies of its requests go; None for nowhere.
        pool: Name of the Ray Serve application whose replicas answer for it; empty where it has its own.
        resident: What those know it by.
        standby: The route to a pool that answers for it while it has no replica; None where none does.
    """

    model: str
    version: str
    application: str
    framework: str
    state: str
    reason: str = ""
    signature: Signature | None = None
    max_batch_size: int = 64
    batch_wait_timeout_s: float = 0.0
    max_inflight_requests: int = 1000
    request_timeout_s: float = 60.0
    replicas: int = 0
    replica_names: tuple[str, ...] = ()
    num_gpus: float = 0.0
    members: Mapping[str, Signature] = field(default_factory=dict)
    publishes_members: bool = False
    member: str = ""
    concurrency: int = 1
    openai_routes: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    adapter: str = ""
    is_watched: bool = False
    shadow: ShadowRoute | None = None
    pool: str = ""
    resident: str = ""
    standby: RevisionRoute | None = None

    @property
    def caller(self) -> str:
        """Names what an ingress replica holds to call it; that of its standby is another."""
        return self.resident or self.application

    @property
    def is_ready(self) -> bool:
        """A replica has loaded it and can answer now."""
        return self.state == "ready" and self.signature is not None

    @property
    def signatures(self) -> dict[str, Signature]:
        """All its signatures by name, its own first; empty before it is known."""
        if self.signature is None:
            return {}
        own = {self.signature_name: self.signature}
        return own if self.publishes_members else own | {n: s for n, s in self.members.items() if n not in own}

    def for_member(self, name: str) -> RevisionRoute:
        """The route of what its replicas answer under that name."""
        return replace(self, member=name, members={})

    @property
    def signature_name(self) -> str:
        """Name of the signature that this is the route of."""
        if self.member and not self.publishes_members:
            return self.member
        return self.signature.name if self.signature is not None else DEFAULT_SIGNATURE

    def get_signature(self, name: str) -> tuple[RevisionRoute, Signature]:
        """The route and the signature of that name.

        Args:
            name: As clients of TensorFlow Serving know it; empty for the model's own.

        Raises:
            SignatureNotFound: It has none of that name.
            ModelNotReady: Its signatures are not known now.
        """
        if self.signature is None:
            raise ModelNotReady(self.model, self.reason or self.state)
        if not name or name == self.signature_name:
            return self, self.signature
        signature = None if self.publishes_members else self.members.get(name)
        if signature is None:
            raise SignatureNotFound(name[:_MAX_SHOWN], self.model, ", ".join(f'"{known}"' for known in self.signatures))
        return replace(self, member=name, signature=signature), signature


@dataclass(frozen=True, slots=True)
class ShadowRoute:
    """Where copies of requests go, whose answers are only compared.

    Attributes:
        revision: What gets them; it has no shadow of its own.
        percent: Of the requests that are copied.
        tolerance: Numbers that differ by so much, relatively or absolutely, are the same.
    """

    revision: RevisionRoute
    percent: float
    tolerance: float


class Sender(Protocol):
    """What a request says of where it comes from."""

    def header(self, name: str) -> str:
        """The value of a header, or of the metadata of that name; empty where it has none."""

    def cookie(self, name: str) -> str:
        """The value of a cookie; empty where it has none."""


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """One model.

    Attributes:
        name: The model.
        active: Number of the revision that answers when the client names none.
        revisions: Those in use, by number, ready or not; the active one among them.
        labels: Numbers by label.
        created_s: When it was made, in seconds since 1970.
        generation: Which change of the catalog this follows.
        weights: Percent by number, of those that can answer now; empty where all of it goes to the active one.
        sticky: Where requests say who they belong to: ``header:`` or ``cookie:`` and its name; empty for nowhere.
    """

    name: str
    active: str
    revisions: Mapping[str, RevisionRoute]
    labels: Mapping[str, str] = field(default_factory=dict)
    created_s: int = 0
    generation: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    sticky: str = ""

    def choose(self, sender: Sender | None = None) -> str:
        """Number of the revision that answers a request that names none.

        By chance, as the weights have it. Requests that belong together all go to one: each revision draws lots for
        whom they belong to, and a changed weight moves only those whose lots it turns (weighted rendezvous hashing).

        Args:
            sender: Whose request it is, where that is known.
        """
        if not self.weights:
            return self.active
        key = _find_key(self.sticky, sender) if self.sticky and sender is not None else ""
        if key:
            return max(self.weights, key=lambda number: self.weights[number] / -math.log(_lot(key, number)))
        left = _chance.random() * sum(self.weights.values())
        for number, weight in self.weights.items():
            left -= weight
            if left < 0:
                return number
        return self.active

    @property
    def newest(self) -> RevisionRoute:
        """The revision with the highest number, whatever state it is in."""
        return max(self.revisions.values(), key=lambda revision: int(revision.version))

    @property
    def ready_versions(self) -> tuple[str, ...]:
        """Numbers of the revisions that can answer now."""
        return tuple(number for number, revision in self.revisions.items() if revision.is_ready)

    def published_members(self) -> Iterator[ModelRoute]:
        """A model for each member that its revisions publish; each with the revisions that have it."""
        names = {
            name for revision in self.revisions.values() if revision.publishes_members for name in revision.members
        }
        for name in sorted(names):
            revisions = {
                number: replace(revision, model=name, member=name, members={}, signature=revision.members[name])
                for number, revision in self.revisions.items()
                if name in revision.members
            }
            active = self.active if self.active in revisions else max(revisions, key=int)
            yield replace(
                self, name=name, active=active, revisions=revisions, labels={}, weights=self._weights_of(revisions)
            )

    def published_adapters(self) -> Iterator[ModelRoute]:
        """A model for each adapter of the active revision, which has its versions and labels."""
        for name in self.revisions[self.active].adapters:
            revisions = {
                number: replace(revision, model=name, adapter=name, adapters=())
                for number, revision in self.revisions.items()
                if name in revision.adapters
            }
            labels = {label: number for label, number in self.labels.items() if number in revisions}
            yield replace(self, name=name, revisions=revisions, labels=labels, weights=self._weights_of(revisions))

    def _weights_of(self, revisions: Mapping[str, RevisionRoute]) -> Mapping[str, float]:
        return {number: weight for number, weight in self.weights.items() if number in revisions}


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All models at one moment; ``version`` grows with every change within one ``epoch`` (a controller's life)."""

    epoch: str = ""
    version: int = 0
    models: Mapping[str, ModelRoute] = field(default_factory=dict)

    def find_model(self, name: str) -> ModelRoute | None:
        """The model of that name."""
        return self.models.get(name)

    def get_model(self, name: str) -> ModelRoute:
        """The model of that name.

        Raises:
            ModelNotFound: There is none.
        """
        model = self.models.get(name)
        if model is None:
            raise ModelNotFound(name)
        return model

    def choose(self, name: str, version: str = "", sender: Sender | None = None) -> tuple[RevisionRoute, Signature]:
        """The revision that answers one request, with its signature: as the weights have it where it names none.

        Args:
            name: The model.
            version: A revision's number or a label; empty for wherever the traffic goes.
            sender: Whose request it is; its header ``x-modelyard-revision`` stands for a version.

        Raises:
            ModelNotFound: Unknown model, version or label.
            ModelNotReady: It cannot answer now; with the reason.
        """
        if not version:
            pinned = sender.header(PIN) if sender is not None else ""
            version = pinned or self.get_model(name).choose(sender)
        return self.get_ready(name, version)

    def get_revision(self, name: str, version: str = "") -> RevisionRoute:
        """The revision that answers for this name and version, ready or not.

        Args:
            name: The model.
            version: A revision's number or a label; empty for the active one.

        Raises:
            ModelNotFound: Unknown model, version or label.
        """
        model = self.models.get(name)
        if model is None:
            raise ModelNotFound(name)
        number = model.active if not version else model.labels.get(version, version)
        revision = model.revisions.get(number) or model.revisions.get(number.lstrip("0"))  # 007 is version 7
        if revision is None:
            raise ModelNotFound(name, version)
        return revision

    def get_ready(self, name: str, version: str = "") -> tuple[RevisionRoute, Signature]:
        """The revision that answers, with its signature.

        Raises:
            ModelNotFound: Unknown model, version or label.
            ModelNotReady: It cannot answer now; with the reason.
        """
        revision = self.get_revision(name, version)
        if revision.signature is None or revision.state != "ready":
            raise ModelNotReady(name, revision.reason or revision.state)
        return revision, revision.signature


def _find_key(sticky: str, sender: Sender) -> str:
    kind, _, name = sticky.partition(":")
    return sender.cookie(name) if kind == "cookie" else sender.header(name)


def _lot(key: str, number: str) -> float:
    """What a revision draws for a key: above 0 and below 1, the same everywhere and always."""
    digest = hashlib.blake2b(f"{number} {key}".encode(errors="surrogateescape"), digest_size=6).digest()
    return (int.from_bytes(digest) + 0.5) / _LOTS
