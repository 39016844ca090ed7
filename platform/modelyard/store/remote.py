# SPDX-License-Identifier: Apache-2.0
"""Artifacts in object stores, on the Hugging Face hub and on web servers: what files there are, and fetching them.

Reached by fsspec, which takes its settings from the environment, as the stores' own libraries do theirs: keys, regions,
endpoints. Messages never repeat a URI's query, which may hold a signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import fsspec

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
_WEB: Final = ("http", "https")
_NOT_FOUND: Final = 404
_MARKS: Final = ("ETag", "etag", "md5Hash", "lfs", "blob_id", "content_md5", "LastModified", "last_modified", "mtime")
"""What a store says of a file that changes with its contents, the surest first."""
ABSENT: Final = "the model's location does not exist"


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


def check_remote(uri: str) -> None:
    """Refuses a URI that can never be fetched.

    Raises:
        InvalidConfig: It names no object, holds a password, or the package for its scheme is not installed.
    """
    _open(uri)


def list_remote(uri: str) -> tuple[RemoteFile, ...]:
    """The files of an artifact as the store has them now, by name; none where there is nothing.

    Args:
        uri: Of a folder, whose files in folders below it count too, or of one file.

    Raises:
        InvalidConfig: As for :func:`check_remote`.
        ModelLoadError: It may not be read, the store does not answer, or a file has a name that none can have.
    """
    filesystem, root = _open(uri)
    is_web = uri.partition("://")[0] in _WEB
    with _explained():
        filesystem.invalidate_cache()
        try:
            found = {root: filesystem.info(root)} if is_web else filesystem.find(root, detail=True)
        except FileNotFoundError as exc:
            cause = exc.__cause__  # fsspec says so of a web server that does not answer, too
            if isinstance(cause, OSError) or getattr(cause, "status", _NOT_FOUND) != _NOT_FOUND:
                raise cause or exc from None
            return ()
    # Some tools write an empty object for a folder.
    kept = {key: info for key, info in found.items() if info.get("type") == "file" and not key.endswith("/")}
    files = [
        _to_file(key.removeprefix(f"{root}/") if key != root else last_name(uri), key, info)
        for key, info in kept.items()
    ]
    return tuple(sorted(files, key=lambda file: file.name))


def last_name(uri: str) -> str:
    """What the last part of a URI says that the file or folder is called."""
    path = unquote(urlsplit(uri).path) if uri.partition("://")[0] in _WEB else uri
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


def get_file(uri: str, file: RemoteFile, target: Path) -> None:
    """Fetches one file.

    Raises:
        ModelLoadError: It is no longer there, or cannot be read or written.
    """
    filesystem, _ = _open(uri)
    with _explained():
        filesystem.get_file(file.key, str(target))
    size = target.stat().st_size
    if file.size >= 0 and size != file.size:
        raise ModelLoadError(f'"{file.name}" was cut off: expected {file.size} bytes, got {size}')


def _open(uri: str) -> tuple[Any, str]:
    scheme = uri.partition("://")[0]
    try:
        parts = urlsplit(uri)
        has_password = parts.password is not None
    except ValueError as exc:
        raise InvalidConfig(("uri: expected a URL, got a malformed one",)) from exc
    if has_password:
        raise InvalidConfig(("uri: expected one without a password: stores take theirs from the environment",))
    if not parts.netloc or (scheme in _WEB and parts.path in ("", "/")):
        raise InvalidConfig((f"uri: expected {scheme}:// and what is fetched from where, got neither",))
    try:
        filesystem, root = fsspec.url_to_fs(uri)
    except ImportError as exc:
        extra = SCHEMES[scheme]
        raise InvalidConfig(
            (f'uri: {scheme}:// needs a package that is not installed: pip install "modelyard[{extra}]"',)
        ) from exc
    except Exception as exc:
        # Each library has its own ways to say that its settings are incomplete.
        raise InvalidConfig((f"uri: {scheme}:// cannot be reached: {type(exc).__name__}: {exc}",)) from exc
    return filesystem, root if scheme in _WEB else root.rstrip("/")


def _to_file(name: str, key: str, info: Mapping[str, Any]) -> RemoteFile:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise ModelLoadError(f'the artifact holds "{name[:80]}", which is no name that a file can have')
    size = info.get("size")
    mark = next((str(info[key]) for key in _MARKS if info.get(key)), "")
    return RemoteFile(path.as_posix(), int(size) if size is not None else -1, mark, key)


@contextmanager
def _explained() -> Iterator[None]:
    """What libraries of stores raise, in our words."""
    try:
        yield
    except FileNotFoundError as exc:
        raise ModelLoadError(ABSENT) from exc
    except PermissionError as exc:
        raise ModelLoadError("the model's location may not be read with the keys that the platform has") from exc
    except Exception as exc:
        status = getattr(exc, "status", None)  # aiohttp's message repeats the whole URL
        what = f"HTTP {status}" if isinstance(status, int) else f"{type(exc).__name__}: {exc}"
        raise ModelLoadError(f"the model's location cannot be read: {what}") from exc
