# SPDX-License-Identifier: Apache-2.0
"""Artifacts in stores: against an S3 server and a web server on this machine."""

from __future__ import annotations

import functools
import http.server
import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from load_tests.processes import free_ports
from s3_server import s3_settings, serving_s3

from modelyard.errors import Forbidden, InvalidConfig, ModelLoadError
from modelyard.store import cache, check_allowed, remote
from modelyard.store.artifact import find_artifact
from modelyard.store.cache import fetch, keep, outline
from modelyard.store.remote import Remote, RemoteFile, StoreError, below, digest_of, is_remote

URI = "s3://models/iris"
LARGE = 300_000


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("s3fs", reason="pip install modelyard[s3]")
    folder = tmp_path_factory.mktemp("s3")
    (port,) = free_ports(1)
    with pytest.MonkeyPatch.context() as patch, serving_s3(folder, port):
        for name, value in s3_settings(port).items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture
def bucket(buckets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bucket with a model, and copies nowhere yet."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    folder = buckets / "models"
    (folder / "iris" / "assets").mkdir(parents=True)
    (folder / "iris" / "model.bin").write_bytes(b"1" * LARGE)
    (folder / "iris" / "config.json").write_text('{"kind": "iris"}')
    (folder / "iris" / "assets" / "words with space.txt").write_text("a b")
    (folder / "iris-2").mkdir()
    (folder / "iris-2" / "other.bin").write_bytes(b"2")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server's address, and its folder."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def list_remote(uri: str) -> tuple[RemoteFile, ...]:
    return Remote(uri).list()


def _digest(uri: str = URI) -> str:
    return digest_of(list_remote(uri))


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were fetched."""
    names: list[str] = []
    real = Remote.get

    def count(self: Remote, file: RemoteFile, target: Path) -> None:
        names.append(file.name)
        real(self, file, target)

    monkeypatch.setattr(Remote, "get", count)
    return names


# -- what is there


def test_its_files_and_no_neighbours(bucket: Path) -> None:
    files = list_remote(URI)
    assert {file.name: file.size for file in files} == {
        "model.bin": LARGE,
        "config.json": 16,
        "assets/words with space.txt": 3,
    }
    assert [file.name for file in below(files, "assets")] == ["words with space.txt"]
    assert [file.name for file in list_remote(f"{URI}/")] == [file.name for file in files]
    assert [file.name for file in list_remote(f"{URI}/model.bin")] == ["model.bin"]


def test_its_identity_changes_with_its_contents_alone(bucket: Path) -> None:
    before = _digest()
    assert _digest() == before
    (bucket / "iris-2" / "other.bin").write_bytes(b"3")
    assert _digest() == before
    (bucket / "iris" / "model.bin").write_bytes(b"2" * LARGE)
    assert _digest() != before


@pytest.mark.parametrize("uri", ["s3://models/none", "s3://nobodys/model"])
def test_where_nothing_is_nothing_is_found(bucket: Path, uri: str) -> None:
    assert list_remote(uri) == ()
    with pytest.raises(ModelLoadError, match="the model's location does not exist"):
        find_artifact(uri)


def test_wrong_keys_are_told(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ModelLoadError, match="may not be read with the keys that the platform has"):
        list_remote(URI)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("https://user:secret@host/model", "expected one without a password"),
        ("https://secret@host/model", "expected one without a password"),
        ("s3://", "expected s3:// and what is fetched from where"),
        ("http://host/", "expected http:// and what is fetched from where"),
        ("https://[host/model", "malformed"),
    ],
)
def test_what_can_never_be_fetched_is_refused(uri: str, problem: str) -> None:
    with pytest.raises(InvalidConfig, match=problem) as caught:
        Remote(uri)
    assert "secret" not in str(caught.value)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(remote.fsspec, "url_to_fs", missing)
    with pytest.raises(InvalidConfig, match=r'pip install "modelyard\[gcs\]"'):
        Remote("gs://bucket/model")


def test_which_are_remote() -> None:
    assert all(map(is_remote, ("s3://b/m", "gs://b/m", "hf://o/m", "https://h/m.onnx")))
    assert not any(map(is_remote, ("models/iris", "/models/s3", "file:///m", "grpc://triton:8001", "s3:b")))


# -- a copy on this node


def test_a_copy_is_whole_and_made_once(bucket: Path, fetched: list[str]) -> None:
    digest = _digest()
    copy = fetch(URI, digest)
    assert _tree(copy.path) == _tree(bucket / "iris")
    assert len(fetched) == 3
    assert fetch(URI, digest).path == copy.path
    assert len(fetched) == 3


def test_a_copy_that_is_there_needs_no_store(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = _digest()
    fetch(URI, digest)
    monkeypatch.setattr(cache, "Remote", None)
    assert (fetch(URI, digest).path / "config.json").exists()


def test_many_at_once_fetch_it_once(bucket: Path, fetched: list[str]) -> None:
    digest = _digest()
    with ThreadPoolExecutor(6) as workers:
        paths = {copy.path for copy in workers.map(lambda _: fetch(URI, digest), range(6))}
    assert len(paths) == 1
    assert sorted(fetched) == ["assets/words with space.txt", "config.json", "model.bin"]


def test_what_has_changed_since_is_refused(bucket: Path) -> None:
    digest = _digest()
    (bucket / "iris" / "model.bin").write_bytes(b"3" * LARGE)
    with pytest.raises(ModelLoadError, match="have changed since this revision was registered"):
        fetch(URI, digest)


def test_what_changes_while_it_is_fetched_is_refused_and_not_kept(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, real = _digest(), Remote.get
    before = (bucket / "iris" / "model.bin").read_bytes()

    def change(self: Remote, file: RemoteFile, target: Path) -> None:
        (bucket / "iris" / "model.bin").write_bytes(b"2" * LARGE)
        real(self, file, target)

    monkeypatch.setattr(Remote, "get", change)
    with pytest.raises(ModelLoadError, match="have changed since"):
        fetch(URI, digest)
    monkeypatch.setattr(Remote, "get", real)
    (bucket / "iris" / "model.bin").write_bytes(before)
    assert _tree(fetch(URI, _digest()).path) == _tree(bucket / "iris")


def test_an_attempt_that_was_cut_off_goes_on(bucket: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]) -> None:
    digest, count = _digest(), Remote.get

    def fail(self: Remote, file: RemoteFile, target: Path) -> None:
        if file.name == "model.bin":
            target.write_bytes(b"1" * 10)
            raise StoreError("the network went away")
        count(self, file, target)

    monkeypatch.setattr(cache, "_ATTEMPTS", 1)
    monkeypatch.setattr(cache, "_FILES_AT_ONCE", 1)  # the other two are fetched before it
    monkeypatch.setattr(Remote, "get", fail)
    with pytest.raises(StoreError, match="the network went away"):
        fetch(URI, digest)
    assert fetched == ["assets/words with space.txt", "config.json"]
    monkeypatch.setattr(Remote, "get", count)
    assert _tree(fetch(URI, digest).path) == _tree(bucket / "iris")
    assert fetched[2:] == ["model.bin"]


def test_a_file_that_comes_cut_off_is_tried_again(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {file.name: file for file in list_remote(URI)}
    with pytest.raises(StoreError, match=r'"model\.bin" was cut off: expected 300001 bytes, got 300000'):
        Remote(URI).get(RemoteFile("model.bin", LARGE + 1, "", files["model.bin"].key), bucket.parent / "x")
    (bucket.parent / "x").unlink()
    attempts: list[str] = []
    real = Remote.get

    def fail_once(self: Remote, file: RemoteFile, target: Path) -> None:
        attempts.append(file.name)
        if attempts.count(file.name) == 1:
            raise StoreError("cut off")
        real(self, file, target)

    monkeypatch.setattr(cache.time, "sleep", lambda _: None)
    monkeypatch.setattr(Remote, "get", fail_once)
    assert _tree(fetch(URI, _digest()).path) == _tree(bucket / "iris")


def test_a_file_and_its_editors_backup_are_two(bucket: Path) -> None:
    (bucket / "iris" / "config.json~").write_text("older")
    assert _tree(fetch(URI, _digest()).path) == _tree(bucket / "iris")


def test_names_that_a_disk_cannot_have_are_told(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(self: Remote) -> tuple[RemoteFile, ...]:
        return (RemoteFile("a", 0, "m", "a"), RemoteFile("a/b", 0, "m", "a/b"))

    monkeypatch.setattr(Remote, "list", listed)
    with pytest.raises(ModelLoadError, match='the artifact holds "a/b" as a file and as a folder'):
        find_artifact(URI)


def test_whatever_a_disk_raises_is_this_artifacts_problem_alone(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Remote, file: RemoteFile, target: Path) -> None:
        raise OSError(28, "No space left on device")

    digest = _digest()
    monkeypatch.setattr(Remote, "get", full)
    with pytest.raises(ModelLoadError, match=r"cannot be (kept on this node|read): OSError: .*No space left on device"):
        fetch(URI, digest)


# -- room


def test_the_least_recently_used_makes_room_and_what_is_in_use_stays(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.LIMIT, str(2.5 * LARGE / 1e9))
    for number in range(4):
        (bucket / f"m{number}").mkdir()
        (bucket / f"m{number}" / "model.bin").write_bytes(b"%d" % number * LARGE)
    uris = [f"s3://models/m{number}" for number in range(4)]
    first, second = (fetch(uri, _digest(uri)) for uri in uris[:2])
    old, used = second.path, first.path
    del second
    third = fetch(uris[2], _digest(uris[2]))
    assert (used.exists(), old.exists(), third.path.exists()) == (True, False, True)
    with pytest.raises(ModelLoadError, match=r"no room .* it takes 0\.0003 GB.*MODELYARD_CACHE_GB"):
        fetch(uris[3], _digest(uris[3]))
    del first
    assert fetch(uris[3], _digest(uris[3])).path.exists()
    assert not used.exists()


def test_what_was_not_removed_to_its_end_is_not_taken_for_whole(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = fetch(URI, _digest())
    folder = copy.path.parent
    del copy
    real = cache.shutil.rmtree

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            (path / "files" / "model.bin").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(cache.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        cache._remove(folder)
    monkeypatch.setattr(cache.shutil, "rmtree", real)
    assert _tree(fetch(URI, _digest()).path) == _tree(bucket / "iris")
    monkeypatch.setenv(cache.LIMIT, str(2 * LARGE / 1e9))
    (bucket / "iris-2" / "other.bin").write_bytes(b"2" * LARGE)
    fetch("s3://models/iris-2", _digest("s3://models/iris-2"))
    assert not list(folder.parent.glob("*.gone"))


def test_many_that_make_room_at_once_do_not_disturb_each_other(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT, str(4.5 * LARGE / 1e9))
    uris = [f"s3://models/many/{number}" for number in range(12)]
    for number in range(12):
        (bucket / "many" / str(number)).mkdir(parents=True)
        (bucket / "many" / str(number) / "model.bin").write_bytes(bytes([number]) * LARGE)
    digests = {uri: _digest(uri) for uri in uris}

    def use(uri: str) -> bytes:
        copy = fetch(uri, digests[uri])
        return (copy.path / "model.bin").read_bytes()[:1]

    with ThreadPoolExecutor(3) as workers:
        found = list(workers.map(use, uris * 3))
    assert found == [bytes([number]) for number in range(12)] * 3


def test_what_is_being_fetched_has_its_room_before_it_is_there(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT, str(1.5 * LARGE / 1e9))
    for number in range(2):
        (bucket / f"m{number}").mkdir()
        (bucket / f"m{number}" / "model.bin").write_bytes(b"%d" % number * LARGE)
    first, second = (f"s3://models/m{number}" for number in range(2))
    digests = {uri: _digest(uri) for uri in (first, second)}
    begun, go_on = threading.Event(), threading.Event()
    real = Remote.get

    def slow(self: Remote, file: RemoteFile, target: Path) -> None:
        begun.set()
        go_on.wait(10)
        real(self, file, target)

    monkeypatch.setattr(Remote, "get", slow)
    with ThreadPoolExecutor(1) as workers:
        fetching = workers.submit(fetch, first, digests[first])
        begun.wait(10)
        with pytest.raises(ModelLoadError, match="no room"):
            fetch(second, digests[second])
        go_on.set()
        assert fetching.result().path.exists()


def test_a_folder_is_kept_as_it_was_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    folder = tmp_path / "adapter"
    (folder / "checkpoint-1").mkdir(parents=True)
    (folder / "weights").write_bytes(b"1" * LARGE)
    copy = keep(folder, lambda _: "as it was", "as it was")
    shutil.rmtree(folder)
    assert _tree(copy.path) == {"weights": b"1" * LARGE}
    copy.release()
    folder.mkdir()
    (folder / "weights").write_bytes(b"2" * LARGE)
    with pytest.raises(ModelLoadError, match="change while they are copied"):
        keep(folder, lambda _: "another by now", "as it is")
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size]
    assert left == [copy.path / "weights"], "nothing of it takes anybody's room"


def test_a_limit_that_is_no_number_is_told(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT, "much")
    with pytest.raises(InvalidConfig, match="MODELYARD_CACHE_GB: expected a number of gigabytes, got 'much'"):
        fetch(URI, _digest())


def test_a_folder_that_cannot_be_made_is_told(bucket: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelLoadError, match=r"copies of artifacts cannot be kept in .*MODELYARD_CACHE"):
        fetch(URI, _digest())


# -- what can be told without fetching


def test_an_outline_has_names_sizes_and_small_texts(bucket: Path, fetched: list[str]) -> None:
    artifact = find_artifact(URI)
    assert artifact.digest() == _digest()
    assert artifact.digest("assets") == _digest(f"{URI}/assets")
    assert (artifact.path / "config.json").read_text() == '{"kind": "iris"}'
    large = (artifact.path / "model.bin").stat()
    assert (large.st_size, large.st_blocks) == (LARGE, 0)
    assert fetched == ["config.json"]
    assert outline(URI, _digest()).path == artifact.path
    assert fetched == ["config.json"]


def test_one_file_is_a_file(bucket: Path) -> None:
    uri = f"{URI}/model.bin"
    assert find_artifact(uri).path.name == "model.bin"
    copy = fetch(uri, _digest(uri))
    assert copy.path.read_bytes() == b"1" * LARGE


# -- web servers and archives


def test_a_file_of_a_web_server(web: tuple[str, Path]) -> None:
    url, folder = web
    (folder / "model one.onnx").write_bytes(b"onnx")
    uri = f"{url}/model%20one.onnx?signature=abc"
    (file,) = list_remote(uri)
    assert (file.name, file.size) == ("model one.onnx", 4)
    before = _digest(uri)
    assert fetch(uri, before).path.read_bytes() == b"onnx"
    (folder / "model one.onnx").write_bytes(b"knox")
    os.utime(folder / "model one.onnx", (0, 1_000_000_000))
    assert _digest(uri) != before
    assert fetch(uri, _digest(uri)).path.read_bytes() == b"knox"
    assert list_remote(f"{url}/none.onnx") == ()


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_an_archive_is_unpacked(web: tuple[str, Path], kind: str, tmp_path: Path) -> None:
    url, folder = web
    (tmp_path / "packed" / "iris").mkdir(parents=True)
    (tmp_path / "packed" / "iris" / "model.bin").write_bytes(b"m")
    name = Path(shutil.make_archive(str(folder / "iris"), kind, tmp_path / "packed")).name
    uri = f"{url}/{name}"
    assert _tree(find_artifact(uri).path) == {"model.bin": b"m"}
    assert _tree(fetch(uri, _digest(uri)).path) == {"model.bin": b"m"}


def test_an_archive_leads_nowhere_else(web: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = web
    with tarfile.open(folder / "evil.tar", "w") as archive:
        member = tarfile.TarInfo("../../evil.bin")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ModelLoadError, match="the archive cannot be unpacked"):
        fetch(f"{url}/evil.tar", _digest(f"{url}/evil.tar"))
    with zipfile.ZipFile(folder / "evil.zip", "w") as zipped:
        zipped.writestr("../../evil.bin", b"evil")
        zipped.writestr("model.bin", b"m")
    assert _tree(fetch(f"{url}/evil.zip", _digest(f"{url}/evil.zip")).path) == {"model.bin": b"m"}
    assert not list(tmp_path.rglob("evil.bin"))


def test_what_is_no_archive_is_told(web: tuple[str, Path]) -> None:
    url, folder = web
    (folder / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(ModelLoadError, match="the archive cannot be unpacked"):
        fetch(f"{url}/broken.zip", _digest(f"{url}/broken.zip"))


def test_an_answer_is_told_without_the_signature_in_its_url(
    web: tuple[str, Path], bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = web
    with pytest.raises(StoreError, match="cannot be read: ") as caught:
        list_remote(f"{url.replace('127.0.0.1', '127.0.0.2')}/model.onnx?signature=abc")
    assert "abc" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(remote._SETTINGS["s3"]["config_kwargs"], "retries", {"max_attempts": 0})
    filesystem = fsspec.get_filesystem_class("s3")
    filesystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r'EndpointConnectionError: .*"http://127\.0\.0\.1:9/models"'):
        list_remote(URI)
    filesystem.clear_instance_cache()


# -- code


def test_code_comes_only_from_below_the_urls_that_are_allowed() -> None:
    check_allowed("s3://models/iris", ["s3://models"])
    check_allowed("s3://models/iris", [".", "s3://models/iris/"])
    check_allowed("hf://owner/model", ["hf://owner"])
    check_allowed("hf://owner/model@v1", ["hf://owner/model@v1"])
    check_allowed("https://host/models/a%20b.joblib?token=1", ["https://host/models"])
    for uri, root in (
        ("s3://models/iris", "."),
        ("s3://models-2/iris", "s3://models"),
        ("gs://models/iris", "s3://models"),
        ("https://host/models/../evil", "https://host/models"),
        ("https://host/models/%2e%2e/evil", "https://host/models"),
        ("s3://models/tr%75sted/iris", "s3://models/trusted"),
        ("hf://owner/model@refs/pr/7", "hf://owner"),
        ("hf://owner/model@refs/pr/7", "hf://owner/model"),
        ("models/iris", "s3://models"),
    ):
        with pytest.raises(Forbidden):
            check_allowed(uri, [root])
