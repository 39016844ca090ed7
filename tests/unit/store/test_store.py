# SPDX-License-Identifier: Apache-2.0
"""Resolving, hashing and confining artifacts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelyard.errors import Forbidden, InvalidConfig, ModelLoadError
from modelyard.store import check_allowed, check_unchanged, digest, resolve


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact at models/iris below the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models" / "iris"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.joblib").write_bytes(b"model")
    (folder / "sub" / "classes.txt").write_text("a b c")
    return folder


def test_paths_and_file_urls_mean_the_same(model: Path) -> None:
    (model / "a b").touch()
    uris = ["models/iris/a b", str(model / "a b"), f"file://{model}/a%20b", f"file://localhost{model}/a%20b"]
    assert {resolve(uri) for uri in uris} == {model / "a b"}


@pytest.mark.parametrize(
    "uri", ["//[", "file://[x", "http://\u2100", "a" * 300, "file:///" + "a" * 300, "a/" * 2500, "\ud800", "circle"]
)
def test_a_path_that_no_file_can_have_is_refused(model: Path, uri: str) -> None:
    (model.parent.parent / "circle").symlink_to("circle")
    with pytest.raises(InvalidConfig, match="uri: expected a path"):
        resolve(uri)


def test_what_does_not_exist_still_resolves(model: Path) -> None:
    assert resolve("models/none") == model.parent / "none"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("ftp://host/iris", 'expected a path, or a URL with file://, s3://, .* or https://, got the scheme "ftp"'),
        ("file://other/iris", "without a host, got the host 'other'"),
        ("//other/iris", "got the scheme"),
        ("file://", "expected a path"),
    ],
)
def test_other_schemes_are_refused(uri: str, problem: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^uri: .*{problem}"):
        resolve(uri)


def test_what_was_registered_is_taken_and_what_changed_since_is_refused(model: Path) -> None:
    registered = digest(model)
    check_unchanged(model, registered)
    (model / "model.joblib").write_bytes(b"another")
    with pytest.raises(ModelLoadError, match="have changed since this revision was registered"):
        check_unchanged(model, registered)


def test_what_python_keeps_beside_modules_does_not_count(model: Path) -> None:
    before = digest(model)
    (model / "sub" / "__pycache__").mkdir()
    (model / "sub" / "__pycache__" / "code.cpython-312.pyc").write_bytes(b"compiled")
    assert digest(model) == before


def test_equal_contents_have_equal_digests_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    before = digest(model)
    model.rename(tmp_path / "elsewhere")
    assert digest(tmp_path / "elsewhere") == before
    assert before.startswith("sha256:")


def test_content_names_and_files_all_change_the_digest(model: Path) -> None:
    seen = [digest(model)]
    (model / "model.joblib").write_bytes(b"model2")
    seen.append(digest(model))
    (model / "model.joblib").rename(model / "other.joblib")
    seen.append(digest(model))
    (model / "empty").touch()
    seen.append(digest(model))
    assert len(set(seen)) == 4


def test_a_single_file_and_a_large_one_have_digests(model: Path) -> None:
    small = digest(model / "model.joblib")
    (model / "model.joblib").write_bytes(bytes(3 * 1024 * 1024 + 1))
    assert small != digest(model / "model.joblib")


def test_a_link_to_a_parent_does_not_loop(model: Path) -> None:
    before = digest(model)
    (model / "sub" / "up").symlink_to(model)
    assert digest(model) == before


def test_what_cannot_be_hashed_says_why(model: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        digest(model / "none")
    os.mkfifo(model / "pipe")
    with pytest.raises(ModelLoadError, match='"pipe", which is not a regular file'):
        digest(model)


def test_inside_a_root_is_allowed(model: Path) -> None:
    for roots in (["."], ["models"], [str(model.parent)], ["other", "models/iris"]):
        check_allowed(str(model), roots)


@pytest.mark.parametrize("roots", [["other"], [], ["models/iri"], ["models/iris/sub"]])
def test_outside_every_root_is_forbidden(model: Path, roots: list[str]) -> None:
    with pytest.raises(Forbidden) as caught:
        check_allowed(str(model), roots)
    assert str(model.parent) not in str(caught.value)


def test_dots_do_not_lead_out_of_a_root(model: Path) -> None:
    with pytest.raises(Forbidden):
        check_allowed("models/iris/sub/../../../models", ["models/iris"])


@pytest.mark.parametrize("linked", ["file", "folder", "through"])
def test_a_link_does_not_lead_out_of_a_root(model: Path, tmp_path: Path, linked: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "evil.joblib").touch()
    if linked == "file":
        (model / "x.joblib").symlink_to(outside / "evil.joblib")
    elif linked == "folder":
        (model / "sub" / "x").symlink_to(outside)
    else:
        (model.parent / "inside").mkdir()
        (model.parent / "inside" / "x.joblib").symlink_to(outside / "evil.joblib")
        (model / "y").symlink_to(model.parent / "inside")
    with pytest.raises(Forbidden):
        check_allowed(str(model), ["models"])
    check_allowed(str(model), ["."])


def test_the_artifact_itself_may_be_a_link_inside_the_root(model: Path) -> None:
    (model.parent / "current").symlink_to(model)
    check_allowed("models/current", ["models"])
