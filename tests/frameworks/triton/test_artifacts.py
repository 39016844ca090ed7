# SPDX-License-Identifier: Apache-2.0
"""What is no repository, or no Triton, fails to load with a sentence that says why, and leaves nothing behind."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import get_framework, load_model
from modelyard_deployments import _triton_install
from modelyard_deployments._triton_process import make_again


def refusal(path: Path, **options: Any) -> str:
    before = set(Path(tempfile.gettempdir()).glob("modelyard-triton-*"))
    with pytest.raises(ModelLoadError) as caught:
        load_model("triton", path, options)
    assert set(Path(tempfile.gettempdir()).glob("modelyard-triton-*")) == before
    assert str(path) not in str(caught.value)
    return str(caught.value)


def test_loading_runs_code_of_the_repository() -> None:
    assert get_framework("triton").loads_code


def test_a_missing_location_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nosuch") == "the model's location does not exist"


def test_a_file_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    assert "a folder with one folder for each model, got model.onnx" in refusal(tmp_path / "model.onnx")


def test_a_folder_without_models_is_no_repository(tmp_path: Path) -> None:
    assert "got no folder" in refusal(tmp_path)


def test_one_models_folder_is_told_from_a_repository(repository: Path) -> None:
    assert "got the folder of one model (it holds config.pbtxt)" in refusal(repository / "sums")


def test_a_repository_whose_only_model_has_no_configuration_says_so(tmp_path: Path, server: str) -> None:
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "rubbish" / "config.pbtxt").write_text("rubbish {")
    assert "\"rubbish\": Poll failed for model directory 'rubbish'" in refusal(tmp_path, server=server)


def test_a_model_without_its_backend_says_so(tmp_path: Path, server: str) -> None:
    (tmp_path / "net" / "1").mkdir(parents=True)
    (tmp_path / "net" / "1" / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "net" / "config.pbtxt").write_text('backend: "onnxruntime"')
    assert "unable to find backend library for backend 'onnxruntime'" in refusal(tmp_path, server=server)


def test_only_models_that_fail_say_why(repository: Path, server: str) -> None:
    reason = refusal(repository, server=server, models=["unloadable", "nosuch"])
    assert '"unloadable": Internal: ValueError: cannot be loaded' in reason
    assert '"nosuch": there is no such model' in reason


def test_without_a_triton_it_says_how_to_get_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_triton_install.sys, "prefix", str(tmp_path))
    reason = refusal(repository)
    assert reason.startswith('no Triton on this machine: expected "tritonserver" on PATH')
    assert "python -m modelyard_deployments.triton install" in reason


def test_the_server_on_path_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _triton_install.find_installation(None).program == program


def test_one_installed_with_this_python_is_found(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "triton").symlink_to(server)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_triton_install.sys, "prefix", str(tmp_path))
    assert _triton_install.find_installation(None).program.is_file()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nosuch", "which does not exist"), ("file", "which cannot be executed"), ("folder", "has filled for Python")],
)
def test_a_server_that_is_none_is_refused(repository: Path, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert reason in refusal(repository, server=str(tmp_path / name))


def test_a_program_that_is_no_triton_is_quoted(repository: Path) -> None:
    assert refusal(repository, server="/bin/true") == "Triton ended; it said: tritonserver ended with status 0"


def test_a_server_that_does_not_get_ready_in_time_is_ended(repository: Path, tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\necho waiting\nexec sleep 60\n")
    program.chmod(0o755)
    reason = refusal(repository, server=str(program), start_timeout_s=0.3)
    assert reason.startswith("Triton did not listen within 0.3 s (option start_timeout_s); it said: waiting")


def test_arguments_that_the_replica_sets_are_refused() -> None:
    for argument in ("--grpc-port=1", "--model-repository", "--load-model=*"):
        with pytest.raises(InvalidConfig, match=r"options\.args: .*that the replica does not set itself"):
            load_model("triton", Path(), {"args": [argument]})


def test_a_folder_that_somebody_else_has_made_is_not_taken(tmp_path: Path) -> None:
    make_again(tmp_path / "own")
    make_again(tmp_path / "own")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="somebody else"):
        make_again(tmp_path / "link")
    assert oct((tmp_path / "own").stat().st_mode & 0o777) == "0o700"
