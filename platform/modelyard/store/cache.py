# SPDX-License-Identifier: Apache-2.0
"""This node's copies of remote artifacts: each fetched once, whoever needs it, and gone when others need the room.

A copy is a folder named by its URI and digest, with a file beside it that all who use it have locked, from before it is
fetched: so what is in use is never removed, and a process that dies lets go of it. A second such file is for whoever
fetches, alone. A folder has its name only while it is whole.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelyard.errors import InvalidConfig, ModelLoadError, ModelyardError
from modelyard.store.remote import ABSENT, Remote, RemoteFile, StoreError, digest_of, last_name

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
_OUTLINE_S: Final = 30 * 24 * 3600.0
"""An outline that nobody has asked for in so long is removed; it takes next to nothing."""
_OUTLINE: Final = ".outline"
_PART: Final = ".part"
_GONE: Final = ".gone"
_LOCK: Final = ".lock"
_FILES: Final = "files"
_UNFINISHED: Final = "unfinished"
_ROOT: Final = "root"
_ROOM: Final = "room"
_RESERVED: Final = "reserved"
_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class Copy:
    """An artifact on this node, which stays as long as this lives.

    Args:
        path: Its folder, or its file where it is one.
        lock: That keeps it.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.release = weakref.finalize(self, os.close, lock)


def fetch(uri: str, digest: str) -> Copy:
    """The artifact on this node; its store is not even asked where it is here already.

    An archive is unpacked. Of one that holds a single folder, that is the artifact.

    Args:
        uri: Of the artifact.
        digest: What it has to be, by ``remote.digest_of``.

    Raises:
        InvalidConfig: Its store cannot be reached from here, ever.
        StoreError: Its store does not answer.
        ModelLoadError: It has changed, cannot be kept, or there is no room for it.
    """
    return _obtain(_key(uri, digest), lambda part: _bring(uri, digest, part))


def outline(uri: str, digest: str, files: tuple[RemoteFile, ...] = ()) -> Copy:
    """What can be said of an artifact without fetching it: its names, its sizes, and what its small texts hold.

    Large files are there with their size and nothing in them. An archive is fetched.

    Args:
        uri: Of the artifact.
        digest: What it is, by ``remote.digest_of``.
        files: As its store has listed them; left out, the store is asked where this node does not know.

    Raises:
        InvalidConfig: Its store cannot be reached from here, ever.
        StoreError: Its store does not answer.
        ModelLoadError: It has changed, or cannot be kept.
    """
    if last_name(uri).lower().endswith(_ARCHIVES):
        return fetch(uri, digest)
    return _obtain(f"{_key(uri, digest)}{_OUTLINE}", lambda part: _sketch(uri, digest, files, part))


def keep(folder: Path, stamp: Callable[[Path], str], expected: str) -> Copy:
    """The files of a folder on this node or a volume, for whoever needs them whatever becomes of the folder.

    Folders within it are left out.

    Args:
        folder: Anybody may change or remove it.
        stamp: Says what changes with each of its files.
        expected: What that said.

    Raises:
        ModelLoadError: It has changed, cannot be kept, or there is no room for it.
    """
    return _obtain(_key(str(folder), expected), lambda part: _copy(folder, stamp, expected, part))


def _copy(folder: Path, stamp: Callable[[Path], str], expected: str, part: Path) -> str:
    files = [path for path in folder.iterdir() if path.is_file()]
    try:
        _reserve(sum(path.stat().st_size for path in files), part)
        for path in files:
            shutil.copyfile(path, part / _FILES / path.name)
        if stamp(folder) != expected:
            raise ModelLoadError("its files change while they are copied")
    except BaseException:  # nobody asks for them as they were again, and what is left takes no room
        shutil.rmtree(part / _FILES)
        (part / _UNFINISHED / _RESERVED).unlink(missing_ok=True)
        raise
    return ""


def _obtain(name: str, make: Callable[[Path], str]) -> Copy:
    """A copy, made unless it is there.

    Args:
        name: What its folder is called.
        make: Puts it together in a folder, and returns where in ``files`` the artifact is.
    """
    try:
        folder = _cache() / name
        part = folder.with_name(f"{name}{_PART}")
        lock = _lock(folder, fcntl.LOCK_SH)
        try:
            if not folder.exists():
                with _held(part):
                    if not folder.exists():
                        for inside in (_FILES, _UNFINISHED):
                            (part / inside).mkdir(parents=True, exist_ok=True)
                        (part / _ROOT).write_text(make(part))
                        shutil.rmtree(part / _UNFINISHED)
                        part.rename(folder)
            os.utime(folder)
            return Copy(folder / _FILES / (folder / _ROOT).read_text(), lock)
        except BaseException:
            os.close(lock)
            raise
    except ModelyardError:
        raise
    except Exception as exc:
        # Disks and archives have many ways to fail, and none is to take more with it than this artifact.
        raise ModelLoadError(f"the artifact cannot be kept on this node: {type(exc).__name__}: {exc}") from exc


def _sketch(uri: str, digest: str, files: tuple[RemoteFile, ...], part: Path) -> str:
    remote = Remote(uri)
    files = files or _list_unchanged(remote, digest)
    for file in files:
        target = _place(part / _FILES, file)
        if 0 <= file.size <= _SMALL_BYTES and file.name.endswith(_TOLD):
            remote.get(file, target)
        else:
            with target.open("wb") as empty:
                empty.truncate(max(0, file.size))
    return _root(uri, files)


def _bring(uri: str, digest: str, part: Path) -> str:
    """Fetches all files; what is there of an attempt that was cut off is not fetched again."""
    remote = Remote(uri)
    files = _list_unchanged(remote, digest)
    missing = [file for file in files if not _is_there(part / _FILES, file)]
    size = sum(max(0, file.size) for file in missing)
    _reserve(size, part)
    began = time.monotonic()
    with ThreadPoolExecutor(_FILES_AT_ONCE, "fetch") as workers:
        fetched = [workers.submit(_get, remote, file, part, number) for number, file in enumerate(missing)]
        try:
            for one in fetched:
                one.result()
        except BaseException:
            workers.shutdown(wait=True, cancel_futures=True)
            raise
    try:
        _list_unchanged(remote, digest)
    except StoreError:
        raise
    except ModelLoadError:  # what was fetched is not what was listed before
        shutil.rmtree(part / _FILES)
        raise
    logger.info("fetched %d files, %.1f MB, in %.1f s", len(missing), size / 1e6, time.monotonic() - began)
    if len(files) == 1 and files[0].name.lower().endswith(_ARCHIVES):
        return _unpack(part / _FILES / files[0].name)
    return _root(uri, files)


def _list_unchanged(remote: Remote, digest: str) -> tuple[RemoteFile, ...]:
    """The files that the store has, which are those that were registered."""
    files = remote.list()
    if not files:
        raise ModelLoadError(ABSENT)
    if digest_of(files) != digest:
        raise ModelLoadError(
            "the artifact's files have changed since this revision was registered: load or register the model again, "
            "and they are its next revision"
        )
    return files


def _get(remote: Remote, file: RemoteFile, part: Path, number: int) -> None:
    unfinished = part / _UNFINISHED / str(number)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            remote.get(file, unfinished)
            break
        except StoreError:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(attempt)
    unfinished.replace(_place(part / _FILES, file))


def _place(folder: Path, file: RemoteFile) -> Path:
    target = folder / file.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        is_taken = target.is_dir()
    except (FileExistsError, NotADirectoryError):
        is_taken = True
    if is_taken:
        raise ModelLoadError(f'the artifact holds "{file.name}" as a file and as a folder, which a disk cannot')
    return target


def _is_there(folder: Path, file: RemoteFile) -> bool:
    target = folder / file.name
    return target.is_file() and target.stat().st_size == file.size


def _root(uri: str, files: tuple[RemoteFile, ...]) -> str:
    """Where in its folder the artifact is: that one file, or all of it."""
    return files[0].name if len(files) == 1 and files[0].name == last_name(uri) else ""


def _unpack(archive: Path) -> str:
    """In place of the archive; what would lie outside its folder is refused (tar) or left out (zip)."""
    folder, is_zip = archive.parent, archive.name.lower().endswith(".zip")
    try:
        if is_zip:
            with zipfile.ZipFile(archive) as zipped:
                size = sum(member.file_size for member in zipped.infolist())
        else:
            with tarfile.open(archive) as packed:
                size = sum(member.size for member in packed)
        _make_room(size)
        if is_zip:
            shutil.unpack_archive(archive, folder, "zip")
        else:
            shutil.unpack_archive(archive, folder, "tar", filter="data")
    except ModelyardError:
        raise
    except Exception as exc:
        archive.unlink()
        raise ModelLoadError(f"the archive cannot be unpacked: {type(exc).__name__}: {exc}") from exc
    archive.unlink()
    entries = list(folder.iterdir())
    return entries[0].name if len(entries) == 1 and entries[0].is_dir() else ""


# -- room


def _reserve(need: int, part: Path) -> None:
    """Removes copies, the least recently used first, until so many bytes more may be there; they are kept for a part.

    One at a time: what another removes meanwhile would be nobody's, and what it fetches soon is not there yet.

    Raises:
        ModelLoadError: Those that are in use leave too little.
    """
    reservation = part / _UNFINISHED / _RESERVED
    with _held(_cache() / _ROOM):
        reservation.unlink(missing_ok=True)  # of an attempt that was cut off: what it fetched is there
        _make_room(need)
        reservation.write_text(str(_size(part) + need))


def _make_room(need: int) -> None:
    cache, limit = _cache(), _limit()
    used: dict[Path, float] = {}
    for entry in cache.iterdir():
        if entry.name.endswith(_GONE):
            shutil.rmtree(entry, ignore_errors=True)
        elif (at := _used_at(entry)) and (not entry.name.endswith(_OUTLINE) or at < time.time() - _OUTLINE_S):
            used[entry] = at
    taken = {entry: _size(entry) for entry in used}
    sizes = {entry: max(size, _reserved(entry)) for entry, size in taken.items()}
    on_disk = shutil.disk_usage(cache).free - sum(sizes[entry] - size for entry, size in taken.items())
    free = min(limit - sum(sizes.values()), on_disk)
    possible = min(limit, free + sum(sizes.values()))
    for entry in sorted(sizes, key=lambda entry: used[entry]) if need <= possible else ():
        if free >= need and not entry.name.endswith(_OUTLINE):
            break
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
    lock = os.open(_lock_file(folder), _OPEN, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_lock(lock, folder):
            return False
        gone = entry.with_name(f"{entry.name}{_GONE}")
        shutil.rmtree(gone, ignore_errors=True)
        entry.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        for one in (folder, folder.with_name(f"{folder.name}{_PART}")):
            _lock_file(one).unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(lock)
    return True


def _used_at(entry: Path) -> float:
    """When a copy was last asked for; 0 where it is none, or none any more."""
    try:
        return entry.stat().st_mtime if entry.is_dir() else 0.0
    except FileNotFoundError:
        return 0.0


def _reserved(entry: Path) -> int:
    """Bytes that a copy will take which is being fetched, or was when that was cut off; 0 for others."""
    try:
        return int((entry / _UNFINISHED / _RESERVED).read_text() or 0)
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _size(folder: Path) -> int:
    """Bytes on the disk."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(where) / name).lstat().st_blocks * 512
            except FileNotFoundError:  # whoever fetches there has finished it
                continue
    return total


# -- places


def _cache() -> Path:
    folder = Path(os.environ.get(FOLDER) or "~/.cache/modelyard").expanduser().absolute()
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


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_LOCK}")


def _lock(folder: Path, how: int) -> int:
    """The lock of a copy, held.

    Args:
        folder: The copy.
        how: Of ``fcntl.flock``.
    """
    while True:
        lock = os.open(_lock_file(folder), _OPEN, 0o600)
        fcntl.flock(lock, how)
        if _is_lock(lock, folder):
            return lock
        os.close(lock)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The lock of a folder, held alone."""
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
