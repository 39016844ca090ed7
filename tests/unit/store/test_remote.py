# SPDX-License-Identifier: Apache-2.0
"""Artifacts in stores: against an S3 server and a web server on this machine."""

from __future__ import annotations

import functools
import http.server
import io
import shutil
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from s3_server import s3_settings, serving_s3

from modelyard.errors import Forbidden, InvalidConfig, ModelLoadError
from modelyard.store import cache, check_allowed, remote
from modelyard.store.artifact import find_artifact
from modelyard.store.cache import fetch, outline
from modelyard.store.remote import below, check_remote, digest_of, is_remote, list_remote

URI = "s3://models/iris"
LARGE = 300_000


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("s3fs", reason="pip install modelyard[s3]")
    folder = tmp_path_factory.mktemp("s3")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
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


def _digest(uri: str = URI) -> str:
    return digest_of(list_remote(uri))


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were fetched."""
    names: list[str] = []
    real = cache.get_file

    def count(uri: str, file: remote.RemoteFile, target: Path) -> None:
        names.append(file.name)
        real(uri, file, target)

    monkeypatch.setattr(cache, "get_file", count)
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
        ("s3://", "expected s3:// and what is fetched from where"),
        ("http://host/", "expected http:// and what is fetched from where"),
        ("https://[host/model", "malformed"),
    ],
)
def test_what_can_never_be_fetched_is_refused(uri: str, problem: str) -> None:
    with pytest.raises(InvalidConfig, match=problem) as caught:
        check_remote(uri)
    assert "secret" not in str(caught.value)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(remote.fsspec, "url_to_fs", missing)
    with pytest.raises(InvalidConfig, match=r'pip install "modelyard\[gcs\]"'):
        check_remote("gs://bucket/model")


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
    monkeypatch.setattr(cache, "list_remote", None)
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


def test_what_changes_while_it_is_fetched_is_refused(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, real = _digest(), cache.get_file

    def change(uri: str, file: remote.RemoteFile, target: Path) -> None:
        real(uri, file, target)
        (bucket / "iris" / "config.json").write_text('{"kind": "rose"}')

    monkeypatch.setattr(cache, "get_file", change)
    with pytest.raises(ModelLoadError, match="have changed since"):
        fetch(URI, digest)


def test_an_attempt_that_was_cut_off_goes_on(bucket: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]) -> None:
    digest, count = _digest(), cache.get_file

    def fail(uri: str, file: remote.RemoteFile, target: Path) -> None:
        if file.name == "model.bin":
            target.write_bytes(b"1" * 10)
            raise ModelLoadError("the network went away")
        count(uri, file, target)

    monkeypatch.setattr(cache, "_ATTEMPTS", 1)
    monkeypatch.setattr(cache, "get_file", fail)
    with pytest.raises(ModelLoadError, match="the network went away"):
        fetch(URI, digest)
    assert "model.bin" not in fetched
    before = len(fetched)
    monkeypatch.setattr(cache, "get_file", count)
    assert _tree(fetch(URI, digest).path) == _tree(bucket / "iris")
    assert fetched[before:] == ["model.bin"] or set(fetched[before:]) < {"model.bin", "config.json"} | set(fetched)
    assert fetched.count("model.bin") == 1


def test_a_file_that_comes_cut_off_is_tried_again(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {file.name: file for file in list_remote(URI)}
    with pytest.raises(ModelLoadError, match=r'"model\.bin" was cut off: expected 300001 bytes, got 300000'):
        remote.get_file(URI, remote.RemoteFile("model.bin", LARGE + 1, "", files["model.bin"].key), bucket / "x")
    attempts: list[str] = []
    real = cache.get_file

    def fail_once(uri: str, file: remote.RemoteFile, target: Path) -> None:
        attempts.append(file.name)
        if attempts.count(file.name) == 1:
            raise ModelLoadError("cut off")
        real(uri, file, target)

    (bucket / "x").unlink()
    monkeypatch.setattr(cache.time, "sleep", lambda _: None)
    monkeypatch.setattr(cache, "get_file", fail_once)
    assert _tree(fetch(URI, _digest()).path) == _tree(bucket / "iris")


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
    assert outline(URI, _digest()) == artifact.path
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
    assert fetch(uri, _digest(uri)).path.read_bytes() == b"onnx"
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


def test_an_answer_is_told_without_the_signature_in_its_url(web: tuple[str, Path]) -> None:
    url, _ = web
    with pytest.raises(ModelLoadError, match="cannot be read: ") as caught:
        list_remote(f"{url.replace('127.0.0.1', '127.0.0.2')}/model.onnx?signature=abc")
    assert "abc" not in str(caught.value)


# -- code


def test_code_comes_only_from_below_the_urls_that_are_allowed() -> None:
    check_allowed("s3://models/iris", ["s3://models"])
    check_allowed("s3://models/iris", [".", "s3://models/iris/"])
    for uri, root in (
        ("s3://models/iris", "."),
        ("s3://models-2/iris", "s3://models"),
        ("gs://models/iris", "s3://models"),
        ("https://host/models/../evil", "https://host/models"),
        ("https://host/models/%2e%2e/evil", "https://host/models"),
        ("models/iris", "s3://models"),
    ):
        with pytest.raises(Forbidden):
            check_allowed(uri, [root])
