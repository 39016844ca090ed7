# SPDX-License-Identifier: Apache-2.0
"""What a replica needs to load a revision, and loading it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelyard.errors import ModelyardError
from modelyard.model import Model, get_framework, load_model, runs_elsewhere
from modelyard.store import check_unchanged, resolve
from modelyard.store.cache import Copy, fetch
from modelyard.store.remote import is_remote


@dataclass(frozen=True, slots=True)
class RevisionSpec:
    """What a replica needs to load one revision; equal text means equal replica.

    Attributes:
        model: Name of the model, for messages.
        framework: Name of its framework.
        uri: Where the artifact is.
        options: The framework's options.
        digest: Identity of the revision.
        artifact: Digest of the artifact's contents when the revision was made; empty where nobody wrote it down.
        platform: The platform's application, by whose controller the model finds others; empty where it finds none.
        warmup: Requests that it answers before it counts as loaded.
    """

    model: str
    framework: str
    uri: str
    options: dict[str, Any]
    digest: str
    artifact: str = ""
    platform: str = ""
    warmup: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Batching:
    """The limits a replica takes while it runs; see ``ModelSpec``."""

    max_batch_size: int
    batch_wait_timeout_s: float
    max_queued_requests: int
    request_timeout_s: float = 0.0


def load_revision(spec: RevisionSpec) -> Model:
    """The revision's model, which knows its name.

    Raises:
        ModelLoadError: Its artifact is not what the revision was made of, or cannot be loaded.
        Exception: What its library raises.
    """
    where: str | Path = spec.uri
    copy = fetch_artifact(spec)
    if copy is not None:
        where = copy.path
    elif not runs_elsewhere(get_framework(spec.framework), spec.uri):
        where = path = resolve(spec.uri)
        if spec.artifact:
            check_unchanged(path, spec.artifact)
    model = load_model(spec.framework, where, spec.options)
    if copy is not None:
        weakref.finalize(model, copy.release)  # it may read its files as long as it lives
    model.name = spec.model
    return model


def fetch_artifact(spec: RevisionSpec) -> Copy | None:
    """The revision's files on this node, where they are in a store.

    Raises:
        ModelLoadError: As ``cache.fetch``.
    """
    if not is_remote(spec.uri) or runs_elsewhere(get_framework(spec.framework), spec.uri):
        return None
    return fetch(spec.uri, spec.artifact)


def to_reason(exc: Exception) -> str:
    """Why a model could not be loaded, as people read it."""
    return str(exc) if isinstance(exc, ModelyardError) else f"{type(exc).__name__}: {exc}"
