# SPDX-License-Identifier: Apache-2.0
"""Artifacts in object stores, on the Hugging Face hub and on web servers: what files there are, and fetching them.

Reached by fsspec, which takes its settings from the environment, as the stores' own libraries do theirs: keys, regions,
endpoints. Messages never repeat a URI's query, which may hold a signature.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.exceptions import FSTimeoutError

from modelyard.errors import InvalidConfig, ModelLoadError

SCHEMES: Final[Mapping[str, str]] = {
    "s3": "s3",
    "gs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "hf": "huggingface",
    "http": "",
    "https": "",
}
"""Which extra of this package has what reaches each; empty where it is always there."""
ABSENT: Final = "the model's location does not exist"
_ANSWER_S: Final = 10.0
"""How long a store may take to say what it has: the clients of some try again for minutes where nobody listens."""
_WEB: Final = ("http", "https")
_NOT_FOUND: Final = 404
_SERVER_ERROR: Final = 500
_SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    # botocore's own would have one store that does not answer hold up the start of a platform for minutes.
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}}}
}
_MARKS: Final = (
    "ETag",
    "md5Hash",
    "crc32c",
    "blob_id",
    "etag",
    "Content-MD5",
    "Last-Modified",
    "LastModified",
    "mtime",
)
"""What stores say of a file that changes with its contents; where one says several, the surest is first."""


_QUERY: Final = re.compile(r"\?[^\s\"']*")
"""It may hold a signature."""


class StoreError(ModelLoadError):
    """A store does not answer, or not to these keys: what it has is not known."""


class StoreAway(StoreError):
    """It does not answer at all: nobody need ask it for anything else."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of an artifact.

    Attributes:
        name: Its path within the artifact, with ``/``.
        size: In bytes; -1 where the server does not say.
        mark: What changes with its contents.
        key: What the store calls it.
    """

    name: str
    size: int
    mark: str
    key: str


def is_remote(uri: str) -> bool:
    """The artifact is not on this node: its URI has a scheme of :data:`SCHEMES`."""
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme in SCHEMES


def last_name(uri: str) -> str:
    """What the last part of a URI says that the file or folder is called."""
    path = unquote(urlsplit(uri).path) if _is_web(uri) else uri
    return path.rstrip("/").rpartition("/")[2]


def digest_of(files: tuple[RemoteFile, ...]) -> str:
    """``sha256:`` and a hash over names, sizes and marks: equal exactly while nobody has changed a file."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{file.size}\0{file.mark}\n".encode(errors="surrogateescape"))
    return f"sha256:{total.hexdigest()}"


def below(files: tuple[RemoteFile, ...], folder: str) -> tuple[RemoteFile, ...]:
    """Those in one folder of the artifact, named from there."""
    prefix = f"{folder}/"
    return tuple(
        RemoteFile(file.name.removeprefix(prefix), file.size, file.mark, file.key)
        for file in files
        if file.name.startswith(prefix)
    )


class Remote:
    """One artifact in its store.

    Args:
        uri: Of a folder, whose files in folders below it count too, or of one file.

    Raises:
        InvalidConfig: It names nothing, holds a password, or the package for its scheme is not installed.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._filesystem, self._root = _open(uri)
        # The hub's client is not one of those that fsspec can end; it has limits of its own.
        self._limit = {"timeout": _ANSWER_S} if isinstance(self._filesystem, AsyncFileSystem) else {}

    def list(self) -> tuple[RemoteFile, ...]:
        """Its files as the store has them now, by name; none where there is nothing.

        Raises:
            StoreError: It may not be read, or the store does not answer.
            ModelLoadError: A file has a name that none can have, or nothing would say when it changes.
        """
        with _explained():
            found = self._find()
        # Some tools write an empty object for a folder.
        kept = {key: info for key, info in found.items() if info.get("type") == "file" and not key.endswith("/")}
        files = {file.name: file for file in (self._to_file(key, info) for key, info in kept.items())}
        if len(files) < len(kept):
            raise ModelLoadError("the artifact holds several files that a disk would call by one name")
        return tuple(files[name] for name in sorted(files))

    def get(self, file: RemoteFile, target: Path) -> None:
        """Fetches one file.

        Raises:
            StoreError: It cannot be read, or came cut off.
            ModelLoadError: It is no longer there.
        """
        with _explained():
            self._filesystem.get_file(file.key, str(target))
        size = target.stat().st_size
        if file.size >= 0 and size != file.size:
            raise StoreError(f'"{file.name}" was cut off: expected {file.size} bytes, got {size}')

    def _find(self) -> dict[str, Mapping[str, Any]]:
        filesystem, root = self._filesystem, self._root
        filesystem.invalidate_cache()
        try:
            found = (
                {root: self._info(root)} if _is_web(self._uri) else filesystem.find(root, detail=True, **self._limit)
            )
        except FileNotFoundError as exc:
            cause = exc.__cause__  # fsspec says so of a web server that does not answer, too
            if cause is not None and getattr(cause, "status", None) != _NOT_FOUND and _is_web(self._uri):
                raise cause from None
            return {}
        # Of one file, Azure's has no details here.
        return found if isinstance(found, dict) else {name: self._info(name) for name in found}

    def _info(self, key: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._filesystem.info(key, **self._limit)
        return found

    def _to_file(self, key: str, info: Mapping[str, Any]) -> RemoteFile:
        if key != self._root and not key.startswith(f"{self._root}/"):
            raise ModelLoadError("the store calls its files otherwise than the URI does: leave out what is not a path")
        name = key.removeprefix(f"{self._root}/") if key != self._root else last_name(self._uri)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
            raise ModelLoadError(f'the artifact holds "{name[:80]}", which is no name that a file can have')
        mark = next((str(info[key]) for key in _MARKS if info.get(key)), "")
        if not mark:
            raise ModelLoadError("its server says neither ETag nor Last-Modified, so that nobody could see a change")
        size = info.get("size")
        return RemoteFile(path.as_posix(), int(size) if size is not None else -1, mark, key)


def _is_web(uri: str) -> bool:
    return uri.partition("://")[0] in _WEB


def _open(uri: str) -> tuple[Any, str]:
    scheme = uri.partition("://")[0]
    try:
        parts = urlsplit(uri)
        has_secret = parts.password is not None or (_is_web(uri) and parts.username is not None)
    except ValueError as exc:
        raise InvalidConfig(("uri: expected a URL, got a malformed one",)) from exc
    if has_secret:
        raise InvalidConfig(("uri: expected one without a password: stores take theirs from the environment",))
    if not parts.netloc or (_is_web(uri) and parts.path in ("", "/")):
        raise InvalidConfig((f"uri: expected {scheme}:// and what is fetched from where, got neither",))
    # What gcsfs calls experimental asks a second service about each bucket, which needs further rights.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # One of its own: they are kept for each thread otherwise, with what they have seen before.
    own = {"skip_instance_cache": True} if scheme == "hf" else {}
    try:
        filesystem, root = fsspec.url_to_fs(uri, **_SETTINGS.get(scheme, {}), **own)
    except ImportError as exc:
        problem = f'uri: {scheme}:// needs a package that is not installed: pip install "modelyard[{SCHEMES[scheme]}]"'
        raise InvalidConfig((problem,)) from exc
    except Exception as exc:
        # Each library has its own ways to say that its settings are incomplete.
        raise InvalidConfig((f"uri: {scheme}:// cannot be reached: {_told(exc)}",)) from exc
    return filesystem, root if _is_web(uri) else root.rstrip("/")


@contextmanager
def _explained() -> Iterator[None]:
    """What libraries of stores raise, in our words."""
    try:
        yield
    except FileNotFoundError as exc:
        raise ModelLoadError(ABSENT) from exc
    except PermissionError as exc:
        raise StoreError("the model's location may not be read with the keys that the platform has") from exc
    except FSTimeoutError as exc:
        raise StoreAway("the model's location cannot be read: its store does not answer in time") from exc
    except Exception as exc:
        status = getattr(exc, "status", None)
        error = StoreError if isinstance(status, int) and status < _SERVER_ERROR else StoreAway
        raise error(f"the model's location cannot be read: {_told(exc)}") from exc


def _told(exc: Exception) -> str:
    status = getattr(exc, "status", None)
    if isinstance(status, int):
        return f"HTTP {status}"
    first, _, _ = str(exc).strip().partition("\n")  # Azure's further lines are for Azure's support
    return f"{type(exc).__name__}: {_QUERY.sub('', first)}"
