# SPDX-License-Identifier: Apache-2.0
"""Where artifacts are, what they contain, and from where code may be loaded.

Messages repeat the URI as its author wrote it, never the absolute path: they reach remote clients.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from modelyard.errors import Forbidden, InvalidConfig, ModelLoadError
from modelyard.store.remote import is_remote

_SUPPORTED: Final = "a path, or a URL with file://, s3://, gs://, az://, abfs://, hf://, http:// or https://"
_CHUNK_BYTES: Final = 1024 * 1024
_PYTHON_CACHE: Final = "__pycache__"


def resolve(uri: str) -> Path:
    """The absolute path of an artifact, with symbolic links followed; it need not exist.

    Args:
        uri: A path, relative to the working directory or absolute, or a ``file://`` URL.

    Raises:
        InvalidConfig: The scheme is not supported, a ``file://`` URL names another host, or no file can have this path.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as exc:
        raise InvalidConfig((f"uri: expected {_SUPPORTED}, got a malformed URL",)) from exc
    if not parts.scheme and not uri.startswith("//"):
        text = uri
    elif parts.scheme == "file" and parts.netloc in ("", "localhost"):
        text = unquote(parts.path)
    elif parts.scheme == "file":
        raise InvalidConfig((f"uri: expected a file:// URL without a host, got the host {parts.netloc!r}",))
    else:
        raise InvalidConfig((f'uri: expected {_SUPPORTED}, got the scheme "{parts.scheme or "//"}"',))
    if not text or "\0" in text:
        raise InvalidConfig(("uri: expected a path, got an empty or malformed one",))
    try:
        path = Path(text).resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as exc:  # too long, a circle of links, unreadable, no UTF-8
        reason = exc.strerror if isinstance(exc, OSError) else "not a path"
        raise InvalidConfig((f"uri: expected a path, got one that cannot be looked at: {reason}",)) from exc
    return path


def check_allowed(uri: str, roots: Sequence[str]) -> None:
    """Refuses an artifact that is not wholly inside one of the allowed locations.

    For formats that can run code while loading. A symbolic link inside the artifact counts as what it points to.

    Args:
        uri: Of the artifact.
        roots: ``security.model_roots``: folders, of which relative ones count from the working directory, and
            beginnings of the URLs of remote stores.

    Raises:
        Forbidden: Without the paths, for it may be shown to remote clients.
        InvalidConfig: As for :func:`resolve`.
        ModelLoadError: A folder in it cannot be read.
    """
    if is_remote(uri):
        outside = not any(_is_below(uri, root) for root in roots if is_remote(root))
    else:
        allowed = [Path(root).resolve() for root in roots if not is_remote(root)]
        try:
            parts = _real_paths(resolve(uri))
            outside = any(not any(part.is_relative_to(root) for root in allowed) for part in parts)
        except OSError as exc:
            raise ModelLoadError(f"the artifact cannot be read: {exc.strerror}") from exc
    if outside:
        raise Forbidden(
            "uri: the artifact, or something a link in it points to, lies outside the allowed locations for formats "
            "that can run code while loading; the operator sets them in security.model_roots"
        )


def _is_below(uri: str, root: str) -> bool:
    """Whether a URL is that of an allowed place, or of what lies below it.

    What another path, a query or a revision could lead to lies elsewhere: whoever may open a pull request on the hub
    writes revisions of other people's models.
    """
    is_web = urlsplit(uri).scheme in ("http", "https")
    path, start = (unquote(uri.partition("?")[0]) if is_web else uri), root.rstrip("/")
    rest = path.removeprefix(start)
    is_inside = path.startswith(start) and (not rest or rest.startswith("/"))
    return is_inside and ".." not in unquote(path).split("/") and not (uri.startswith("hf://") and "@" in rest)


def digest(path: Path) -> str:
    """``sha256:`` and a hash over the artifact's relative file names and contents.

    Equal for equal contents wherever they lie; a file is read in pieces, links are followed. What Python itself keeps
    beside modules that it imports does not count, or loading an artifact would change it.

    Raises:
        ModelLoadError: There is no artifact, it cannot be read, or it holds something that is not a file.
    """
    if not path.exists():
        raise ModelLoadError("the model's location does not exist")
    total = hashlib.sha256()
    try:
        for name, file in sorted(_files(path)):
            total.update(name.encode(errors="surrogateescape") + b"\0" + _file_digest(file) + b"\n")
    except OSError as exc:
        raise ModelLoadError(f"the artifact cannot be read: {exc.strerror}") from exc
    return f"sha256:{total.hexdigest()}"


def check_unchanged(path: Path, registered: str) -> None:
    """Refuses an artifact that is not the registered one any more: a revision is what it was registered as.

    Args:
        path: From :func:`resolve`.
        registered: Its digest at the time.

    Raises:
        ModelLoadError: It holds something else, or cannot be read.
    """
    if digest(path) != registered:
        raise ModelLoadError(
            "the artifact's files have changed since this revision was registered: load or register the model again, "
            "and they are its next revision"
        )


def _file_digest(file: Path) -> bytes:
    if not file.is_file():
        raise ModelLoadError(f'the artifact holds "{file.name}", which is not a regular file')
    content = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            content.update(chunk)
    return content.digest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Relative names and files below a directory; the file itself where it is one."""
    if not path.is_dir():
        yield path.name, path
        return
    for folder, names in _walk(path):
        if folder.name != _PYTHON_CACHE:
            for name in names:
                file = folder / name
                yield file.relative_to(path).as_posix(), file


def _walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    seen: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up, or a second one to the same folder: its files are counted already
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield Path(folder), names


def _real_paths(path: Path) -> Iterator[Path]:
    """Where the artifact, each folder in it and each link in it really lie; a folder comes before what is in it."""
    yield path.resolve()
    if path.is_dir():
        for folder, names in _walk(path):
            yield folder.resolve()
            yield from (file.resolve() for file in map(folder.joinpath, names) if file.is_symlink())


def _raise(error: OSError) -> None:
    raise error
