# SPDX-License-Identifier: Apache-2.0
"""An artifact as the controller looks at it, wherever it is: its files' names, and what changes with their contents."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from modelyard.errors import ModelLoadError
from modelyard.store import digest, resolve
from modelyard.store.cache import Copy, outline
from modelyard.store.remote import ABSENT, Remote, RemoteFile, below, digest_of, is_remote
from modelyard.store.versions import list_files


class Artifact(Protocol):
    """What there is to say of one without loading it.

    Attributes:
        path: Its folder, or its file where it is one; of one in a store an outline, whose large files are empty.
    """

    path: Path

    def digest(self, folder: str = "") -> str:
        """Identity of what it holds, or one folder of it.

        Raises:
            ModelLoadError: It is not there or cannot be read.
        """

    def stamp(self, folder: str) -> object:
        """Equal while nobody writes to that folder of it; cheaper than the digest."""


class LocalArtifact:
    """On this node, or on a volume that every node has."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def digest(self, folder: str = "") -> str:
        """See :class:`Artifact`."""
        return digest(self.path / folder)

    def stamp(self, folder: str) -> object:
        """See :class:`Artifact`."""
        return list_files(self.path / folder)


class RemoteArtifact:
    """In a store, as it was when this was made."""

    def __init__(self, copy: Copy, files: tuple[RemoteFile, ...]) -> None:
        self.path = copy.path
        self._copy = copy
        self._files = files

    def digest(self, folder: str = "") -> str:
        """See :class:`Artifact`."""
        return digest_of(below(self._files, folder) if folder else self._files)

    def stamp(self, folder: str) -> object:
        """See :class:`Artifact`."""
        return below(self._files, folder)


def find_artifact(uri: str) -> Artifact:
    """The artifact of that URI; on this node it need not be there.

    Raises:
        InvalidConfig: The URI is none of an artifact.
        StoreError: Its store does not answer.
        ModelLoadError: Its store has nothing there, or what it has cannot be an artifact.
    """
    if not is_remote(uri):
        return LocalArtifact(resolve(uri))
    if not (files := Remote(uri).list()):
        raise ModelLoadError(ABSENT)
    return RemoteArtifact(outline(uri, digest_of(files), files), files)
