# SPDX-License-Identifier: Apache-2.0
"""Damaged and foreign files fail to load with a sentence that says what to do; none of them ends the process."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from modelyard.errors import ModelLoadError
from modelyard.model import get_framework, load_model


def _refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model("pytorch", path.parent, options)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def test_loading_is_confined_to_allowed_locations() -> None:
    assert get_framework("pytorch").loads_code


@pytest.mark.parametrize("name", ["model.pt", "model.pt2"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a PyTorch file"),
        (b"\x00" * 100, "not a PyTorch file"),
        (b"PK\x03\x04" + bytes(60), "truncated or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "torch.export.save"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = _refusal(tmp_path / name)
    assert reason in message
    assert message.startswith(f"{name}: ")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("what", [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).state_dict()])
def test_pickled_module_and_weights_say_what_to_do(tmp_path: Path, what: Any, old: bool) -> None:
    torch.save(what, tmp_path / "model.pt", _use_new_zipfile_serialization=not old)
    message = _refusal(tmp_path / "model.pt")
    assert "torch.export.save(torch.export.export(model.eval(), example_inputs)" in message
    assert "framework: custom" in message


def test_other_archives_are_refused(tmp_path: Path) -> None:
    for member, reason in [("word/document.xml", "neither"), ("m/data/aotinductor/model/a.so", "AOTInductor")]:
        with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
            archive.writestr(member, "x")
        assert reason in _refusal(tmp_path / "model.pt2")


def test_folder_named_as_a_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").mkdir()
    assert "expected a file, got a folder" in _refusal(tmp_path / "model.pt", model_file="model.pt")


@pytest.mark.parametrize(
    ("case", "old", "new"), [("exported", "model.pt2", "model.pt"), ("traced", "model.pt", "x.pth")]
)
def test_what_a_file_is_is_not_told_by_its_name(tmp_path: Path, trainers: Any, case: str, old: str, new: str) -> None:
    trainers("pytorch")[case](tmp_path)
    (tmp_path / old).rename(tmp_path / new)
    assert load_model("pytorch", tmp_path, {}).signature.inputs[0].name == "x"


def test_program_of_another_version_names_both(tmp_path: Path, trainers: Any) -> None:
    trainers("pytorch")["exported"](tmp_path)
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith("models/model.json"))
    members[name] = members[name].replace(b"aten.linear.default", b"aten.nonsense.default")
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    message = _refusal(path)
    assert f"PyTorch {torch.__version__} cannot load this exported program" in message
    assert "nonsense" in message


PROGRAM = """
import logging, pathlib, random, sys
from modelyard.errors import ModelLoadError
from modelyard.model import load_model

logging.disable()
path = pathlib.Path(sys.argv[1])
data = path.read_bytes()
random.seed(7)
damaged = [data[:length] for length in range(1, len(data), len(data) // 12)]
for _ in range(24):
    place = random.randrange(len(data))
    damaged.append(data[:place] + bytes([random.randrange(256)]) + data[place + 1:])
refused = 0
for content in damaged:
    path.write_bytes(content)
    try:
        load_model("pytorch", path.parent, {})
    except ModelLoadError:
        refused += 1
print(refused >= 12)
"""


@pytest.mark.parametrize(("case", "name"), [("exported", "model.pt2"), ("traced", "model.pt")])
def test_damaged_files_are_refused_and_end_no_process(tmp_path: Path, trainers: Any, case: str, name: str) -> None:
    trainers("pytorch")[case](tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr
