# SPDX-License-Identifier: Apache-2.0
"""This node's copies of remote artifacts: each fetched once, whoever needs it, and gone when others need the room.

A copy is a folder named by its URI and digest, with a file beside it that all who use it have locked, from before it is
fetched: so what is in use is never removed, and a process that dies lets go of it. A second such file is for whoever
fetches, alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tarfile
import time
import weakref
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.store.remote import ABSENT, RemoteFile, digest_of, get_file, last_name, list_remote

logger = logging.getLogger(__name__)

FOLDER: Final = "MODELYARD_CACHE"
"""Environment variable: where the copies are; ``~/.cache/modelyard`` where it is not set."""
LIMIT: Final = "MODELYARD_CACHE_GB"
"""Environment variable: gigabytes (10^9 bytes) that all copies take at most; 100 where it is not set."""
_DEFAULT_GB: Final = 100.0
_GB: Final = 1e9
_FILES_AT_ONCE: Final = 8
_ATTEMPTS: Final = 3
_SMALL_BYTES: Final = 256 * 1024
_TOLD: Final = (".json", ".yaml", ".yml", "MLmodel", ".pbtxt")
"""Endings of the files that an outline has with what is in them, where they are small."""
_ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz")
_PART: Final = ".part"
_OUTLINE: Final = ".outline"
_LOCK: Final = ".lock"
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class Copy:
    """An artifact on this node, which stays as long as this lives.

    Args:
        path: Its folder, or its file where it is one.
        lock: That keeps it.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        weakref.finalize(self, os.close, lock)


def fetch(uri: str, digest: str) -> Copy:
    """The artifact on this node; its store is not even asked where it is here already.

    An archive is unpacked. Of one that holds a single folder, that is the artifact.

    Args:
        uri: Of the artifact.
        digest: What it has to be, by ``remote.digest_of``.

    Raises:
        InvalidConfig: Its store cannot be reached from here, ever.
        ModelLoadError: It has changed, cannot be fetched, or there is no room for it.
    """
    folder = _cache() / _key(uri, digest)
    lock = _lock(folder, fcntl.LOCK_SH)
    try:
        if not folder.exists():
            with _held(_part(folder)):
                if not folder.exists():
                    _bring(uri, digest, folder)
        os.utime(folder)
        return Copy(_artifact(uri, folder), lock)
    except BaseException:
        os.close(lock)
        raise


def outline(uri: str, digest: str, files: tuple[RemoteFile, ...] = ()) -> Path:
    """What can be said of an artifact without fetching it: its names, its sizes, and what its small texts hold.

    Large files are there with their size and nothing in them. An archive is fetched.

    Args:
        uri: Of the artifact.
        digest: What it is, by ``remote.digest_of``.
        files: From ``remote.list_remote``; left out, the store is asked where this node does not know.

    Raises:
        InvalidConfig: Its store cannot be reached from here, ever.
        ModelLoadError: It cannot be read or written.
    """
    if last_name(uri).lower().endswith(_ARCHIVES):
        return fetch(uri, digest).path
    folder = _cache() / f"{_key(uri, digest)}{_OUTLINE}"
    with _held(folder):
        if not folder.exists():
            part = _part(folder)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for file in files or _list_unchanged(uri, digest):
                target = _place(part, file)
                if 0 <= file.size <= _SMALL_BYTES and file.name.endswith(_TOLD):
                    get_file(uri, file, target)
                else:
                    with target.open("wb") as empty:
                        empty.truncate(max(0, file.size))
            part.rename(folder)
        os.utime(folder)
    return _artifact(uri, folder)


def _bring(uri: str, digest: str, folder: Path) -> None:
    """Fetches all files into a folder beside, which takes its place when they are whole.

    What is there of an attempt that was cut off is not fetched again.
    """
    files = _list_unchanged(uri, digest)
    part = _part(folder)
    part.mkdir(exist_ok=True)
    missing = [file for file in files if not _is_there(part, file)]
    size = sum(max(0, file.size) for file in missing)
    _make_room(size)
    began = time.monotonic()
    with ThreadPoolExecutor(_FILES_AT_ONCE, "fetch") as workers:
        fetched = [workers.submit(_get, uri, file, part) for file in missing]
        try:
            for one in fetched:
                one.result()
        except BaseException:
            workers.shutdown(wait=True, cancel_futures=True)
            raise
    _list_unchanged(uri, digest)
    if _is_archive(files):
        _unpack(part / files[0].name)
    logger.info("fetched %d files, %.1f MB, in %.1f s", len(missing), size / 1e6, time.monotonic() - began)
    part.rename(folder)


def _list_unchanged(uri: str, digest: str) -> tuple[RemoteFile, ...]:
    """The files that the store has, which are those that were registered."""
    files = list_remote(uri)
    if not files:
        raise ModelLoadError(ABSENT)
    if digest_of(files) != digest:
        raise ModelLoadError(
            "the artifact's files have changed since this revision was registered: load or register the model again, "
            "and they are its next revision"
        )
    return files


def _get(uri: str, file: RemoteFile, folder: Path) -> None:
    target = _place(folder, file)
    unfinished = target.with_name(f"{target.name}~")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            get_file(uri, file, unfinished)
            break
        except ModelLoadError:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(attempt)
    unfinished.replace(target)


def _place(folder: Path, file: RemoteFile) -> Path:
    target = folder / file.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as exc:  # stores have objects a and a/b, folders have not
        raise ModelLoadError(f'the artifact holds "{file.name}" in something that is a file itself') from exc
    return target


def _is_there(folder: Path, file: RemoteFile) -> bool:
    target = folder / file.name
    return target.is_file() and target.stat().st_size == file.size


def _is_archive(files: tuple[RemoteFile, ...]) -> bool:
    return len(files) == 1 and files[0].name.lower().endswith(_ARCHIVES)


def _unpack(archive: Path) -> None:
    """In place of the archive; what would lie outside its folder is refused (tar) or left out (zip)."""
    try:
        if archive.name.lower().endswith(".zip"):
            shutil.unpack_archive(archive, archive.parent, "zip")
        else:
            shutil.unpack_archive(archive, archive.parent, "tar", filter="data")
    except (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as exc:
        raise ModelLoadError(f"the archive cannot be unpacked: {exc}") from exc
    archive.unlink()


def _artifact(uri: str, folder: Path) -> Path:
    """What in a copy's folder is the artifact: that one file, what an archive holds in one folder, or all of it."""
    name = last_name(uri)
    entries = list(folder.iterdir())
    is_one = len(entries) == 1 and (entries[0].is_file() and entries[0].name == name)
    is_one = is_one or (len(entries) == 1 and entries[0].is_dir() and name.lower().endswith(_ARCHIVES))
    return entries[0] if is_one else folder


# -- room


def _make_room(need: int) -> None:
    """Removes copies, the least recently used first, until so many bytes more may be there.

    Raises:
        ModelLoadError: Those that are in use leave too little.
    """
    cache, limit = _cache(), _limit()
    sizes = {entry: _size(entry) for entry in cache.iterdir() if entry.is_dir()}
    free = min(limit - sum(sizes.values()), shutil.disk_usage(cache).free)
    for entry in sorted(sizes, key=lambda entry: entry.stat().st_mtime):
        if free >= need:
            return
        if _remove(entry):
            free += sizes[entry]
    if free < need:
        raise ModelLoadError(
            f"there is no room for it on this node: it takes {need / _GB:.3g} GB, and {max(0, free) / _GB:.3g} of the "
            f"{limit / _GB:g} that copies may take ({LIMIT}) can be made free"
        )


def _remove(entry: Path) -> bool:
    """Whether a copy could be removed: nobody uses or fetches it."""
    folder = entry.with_name(entry.name.removesuffix(_PART))
    lock = os.open(_lock_file(folder), _NEW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry, ignore_errors=True)
        for one in (folder, _part(folder)):
            _lock_file(one).unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _size(folder: Path) -> int:
    """Bytes on the disk."""
    return sum((Path(where) / name).lstat().st_blocks * 512 for where, _, names in os.walk(folder) for name in names)


# -- places


def _cache() -> Path:
    folder = Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "modelyard").expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ModelLoadError(f"copies of artifacts cannot be kept in {folder} ({FOLDER}): {exc.strerror}") from exc
    return folder


def _limit() -> int:
    text = os.environ.get(LIMIT) or str(_DEFAULT_GB)
    try:
        return int(float(text) * _GB)
    except ValueError as exc:
        raise InvalidConfig((f"{LIMIT}: expected a number of gigabytes, got {text!r}",)) from exc


def _key(uri: str, digest: str) -> str:
    return hashlib.sha256(f"{uri}\n{digest}".encode(errors="surrogateescape")).hexdigest()[:32]


def _part(folder: Path) -> Path:
    """Where it is put together."""
    return folder.with_name(f"{folder.name}{_PART}")


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_LOCK}")


def _lock(folder: Path, how: int) -> int:
    """The lock of a copy, held.

    Args:
        folder: The copy.
        how: Of ``fcntl.flock``.
    """
    while True:
        lock = os.open(_lock_file(folder), _NEW, 0o600)
        fcntl.flock(lock, how)
        if _is_lock(lock, folder):
            return lock
        os.close(lock)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The lock of a copy, held alone."""
    lock = _lock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _is_lock(lock: int, folder: Path) -> bool:
    """It is still the lock of that copy: it was not removed, with the copy, while this waited for it."""
    try:
        return _lock_file(folder).stat().st_ino == os.fstat(lock).st_ino
    except FileNotFoundError:
        return False
