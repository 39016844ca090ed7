# SPDX-License-Identifier: Apache-2.0
"""What the catalog keeps of a model's artifact: its digest, and where it is a folder of versions, that of each."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from modelyard.catalog import ModelEntry, ModelRecord, VersionEntry
from modelyard.config import ModelSpec, RolloutPolicy, VersionPolicy, load_model_spec
from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import Framework, find_model_path, get_framework, runs_elsewhere
from modelyard.store import check_allowed
from modelyard.store.artifact import Artifact, find_artifact
from modelyard.store.remote import is_remote
from modelyard.store.versions import is_version_folder, list_versions

_ABSENT: Final = "absent"
_ELSEWHERE: Final = ""
_REMOTE_LOOK_S: Final = 15.0
_READ_AGAIN_S: Final = 60.0


def make_absent_entry(spec: ModelSpec) -> ModelEntry:
    """For a model whose artifact cannot be looked at."""
    return _make_entry(spec, _ABSENT)


def make_known_entry(spec: ModelSpec, record: ModelRecord | None) -> ModelEntry | None:
    """For a model in a store that does not answer: as the catalog has it, where nothing else of it has changed."""
    if record is None or record.latest is None:
        return None
    revisions = record.revisions if record.is_versioned else (record.latest,)
    own = {"uri", "artifact"} if record.is_versioned else {"artifact"}
    asked = {key: value for key, value in spec.revision_content().items() if key not in own}
    for one in revisions:
        content = {key: value for key, value in one.content.items() if key not in own}
        if content != asked or one.content.get("artifact") in (None, "", _ABSENT):
            return None
        if record.is_versioned and one.content.get("uri", "").rpartition("/")[0] != spec.uri.rstrip("/"):
            return None
    if not record.is_versioned:
        return _make_entry(spec, record.latest.content["artifact"])
    versions = tuple(VersionEntry(one.number, dict(one.content), one.digest) for one in revisions)
    labels = {label: number for label, number in _policy(spec).labels.items() if number in {v.number for v in versions}}
    return ModelEntry(spec.name, spec.to_json(), versions[-1].content, versions[-1].digest, versions, labels)


def _make_entry(spec: ModelSpec, artifact: str) -> ModelEntry:
    content = spec.revision_content() | {"artifact": artifact}
    return ModelEntry(spec.name, spec.to_json(), content, spec.revision_digest(artifact))


class Artifacts:
    """Looks at artifacts for the controller.

    Args:
        roots: From where formats may be loaded that can run code: ``security.model_roots``.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._found: dict[str, object] = {}
        self._taken: dict[str, object] = {}
        self._again_at: dict[str, float] = {}
        self._next_look: dict[str, float] = {}

    def make_entry(self, spec: ModelSpec, known: Mapping[str, str] | None = None) -> ModelEntry:
        """The model with its artifact as it is now.

        Args:
            spec: Of an installed framework, with options that it takes.
            known: Digests of folders of versions that need not be read again, by URI.

        Raises:
            ModelLoadError: The artifact is not there, or the framework does not find its file in it.
            Forbidden: Its format can run code, and it lies outside the allowed locations.
            InvalidConfig: A label points at a version that is not served, the model runs elsewhere and is to have
                versions, or its workers cannot have its GPUs as they are asked for.
        """
        framework = get_framework(spec.framework)
        if runs_elsewhere(framework, spec.uri):
            if spec.version_policy is not None:
                raise InvalidConfig(("version_policy: expected none for a model that runs elsewhere, got one",))
            return _make_entry(spec, _ELSEWHERE)
        for location in framework.code_locations(spec.uri, spec.options):
            check_allowed(location, self._roots)
        artifact = find_artifact(spec.uri)
        if _has_versions(spec, artifact.path, framework):
            _check_workers(spec, framework, artifact.path)
            return _make_versions(spec, artifact, known or {})
        options = framework.options.model_validate(spec.options)
        find_model_path(artifact.path, framework, options.model_file)
        _check_workers(spec, framework, artifact.path)
        return _make_entry(spec, artifact.digest())

    def look_again(self, record: ModelRecord, failed: Collection[int]) -> ModelEntry | None:
        """The model as its folder of versions now has it; None where nothing is to be done about it (yet).

        Something is where versions have come or gone, or the files of one that failed have changed, and two looks in a
        row have found the same: whoever copies files there has finished.

        Args:
            record: The model as the catalog has it.
            failed: Those of its versions that cannot be loaded.

        Raises:
            ModelyardError: As for :meth:`make_entry`.
        """
        uri = str(record.spec.get("uri", ""))
        if not record.spec.get("version_policy") and all(one.content.get("uri") == uri for one in record.revisions):
            return None
        spec = load_model_spec(record.spec)
        if runs_elsewhere(get_framework(spec.framework), spec.uri):
            return None
        if is_remote(spec.uri) and not self._may_look(spec.name):
            return None
        artifact = find_artifact(spec.uri)
        folders = list_versions(artifact.path)
        served = _policy(spec).select(folders)
        known = {one.number for one in record.revisions if one.content.get("uri") != uri}
        suspects = [number for number in served if number not in known or number in failed]
        if not served or (not suspects and known == set(served)):
            return None
        found = (served, tuple(artifact.stamp(folders[number]) for number in suspects))
        is_steady, self._found[spec.name] = self._found.get(spec.name) == found, found
        is_taken = self._taken.get(spec.name) == found and time.monotonic() < self._again_at.get(spec.name, math.inf)
        if not is_steady or is_taken:
            return None
        self._taken[spec.name] = found
        self._again_at.pop(spec.name, None)
        kept = (one for one in record.revisions if one.number not in failed)
        try:
            return self.make_entry(spec, {one.content["uri"]: one.content["artifact"] for one in kept})
        except ModelLoadError:  # of a store, or a disk, that may answer later; all is read again then
            self._again_at[spec.name] = time.monotonic() + _READ_AGAIN_S
            raise

    def look_anew(self, name: str) -> None:
        """What was found of that model was not taken after all: the next look finds it again."""
        self._again_at[name] = 0.0

    def _may_look(self, name: str) -> bool:
        """Stores are not asked as often as the disk."""
        now = time.monotonic()
        if now < self._next_look.get(name, 0.0):
            return False
        self._next_look[name] = now + _REMOTE_LOOK_S
        return True


def _check_workers(spec: ModelSpec, framework: Framework, path: Path) -> None:
    """What is known of a replica's workers only with its artifact.

    Raises:
        InvalidConfig: See :meth:`Artifacts.make_entry`.
    """
    gpus, target = spec.resources.num_gpus, spec.autoscaling.target_gpu_percent
    workers = framework.workers(path, framework.options.model_validate(spec.options)) if gpus else 0
    if workers > 1 and gpus % workers:
        raise InvalidConfig((f"resources.num_gpus: expected a multiple of {workers}, its workers, got {gpus:g}",))
    if workers and target is not None:
        expected = "expected none for a model whose workers have its GPUs in processes of their own"
        raise InvalidConfig((f"autoscaling.target_gpu_percent: {expected}, got {target:g}",))


def _policy(spec: ModelSpec) -> VersionPolicy:
    return spec.version_policy or VersionPolicy()


def _has_versions(spec: ModelSpec, path: Path, framework: Framework) -> bool:
    return spec.version_policy is not None or is_version_folder(path, framework.suffixes)


def _make_versions(spec: ModelSpec, found: Artifact, known: Mapping[str, str]) -> ModelEntry:
    if spec.rollout != RolloutPolicy():
        expected = "expected none for a folder of versions, of which the highest gets the traffic when it is ready"
        raise InvalidConfig((f"rollout: {expected}, got one",))
    folders = list_versions(found.path)
    served = _policy(spec).select(folders)
    if not served:
        got = ", ".join(map(str, sorted(folders))) or "none"
        raise ModelLoadError(f"expected folders of versions (1, 2, …) that version_policy serves, got {got}")
    labels = _policy(spec).labels
    for label, number in labels.items():
        if number not in served:
            expected = ", ".join(map(str, served))
            where = f"version_policy.labels.{label}"
            raise InvalidConfig((f"{where}: expected one of the versions served, {expected}, got {number}",))
    versions = []
    for number in served:
        uri = f"{spec.uri.rstrip('/')}/{folders[number]}"
        artifact = known.get(uri) or found.digest(folders[number])
        content: dict[str, Any] = spec.revision_content() | {"uri": uri, "artifact": artifact}
        versions.append(VersionEntry(number, content, spec.revision_digest(artifact)))
    last = versions[-1]
    return ModelEntry(spec.name, spec.to_json(), last.content, last.digest, tuple(versions), labels)
