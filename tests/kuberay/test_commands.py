# SPDX-License-Identifier: Apache-2.0
"""The commands ``render kuberay`` and ``validate`` where something is wrong: one line, and a status that tells what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rendering import KUBERAY, find

from modelyard.cli import main

CONFIG = KUBERAY / "overlays" / "cpu" / "platform.yaml"
MEANT = 'of ray.io; did you mean "RayService"?'
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture
def render(run: Run) -> Run:
    return lambda *arguments: run("render", "kuberay", "--config", str(CONFIG), *arguments)


def problems(err: str) -> list[str]:
    return [line for line in err.splitlines() if "warning" not in line]


def test_a_folder_that_is_not_there_is_one_line(render: Run, tmp_path: Path) -> None:
    path = tmp_path / "none" / "rayservice.yaml"
    status, out, err = render("--output", str(path))
    assert (status, out) == (1, "")
    assert problems(err) == [f"modelyard: --output: {path}: cannot be written: No such file or directory"]


def test_the_status_tells_a_difference_from_a_failure(render: Run, tmp_path: Path) -> None:
    path = tmp_path / "rayservice.yaml"
    assert render("--output", str(path))[0] == 0
    assert render("--diff", str(path))[0] == 0
    assert render("--diff", str(path), "--worker-memory", "24Gi")[0] == 1
    for wrong in (("--overlay", "cpus"), ("--name", "Mine"), ("--output", str(tmp_path / "none" / "a"))):
        status, out, err = render("--diff", str(path), *wrong)
        assert (status, out, len(problems(err))) == (2, "", 1), wrong


@pytest.mark.parametrize("pair", ["a b=c", "a=-c", "a/b/c=d", f"a={'x' * 64}"])
def test_a_selector_of_nodes_is_a_label(render: Run, pair: str) -> None:
    status, _, err = render("--node-selector", f"cpu:{pair}")
    assert status == 2
    assert "expected a label of nodes" in " ".join(err.replace("│", " ").split())


def test_what_a_list_holds_is_checked(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    service = find("overlays/cpu", "RayService")
    service["spec"]["servConfigV2"] = service["spec"].pop("serveConfigV2")
    inner = {"apiVersion": "v1", "kind": "List", "items": [service]}
    secret = {"apiVersion": "v1", "kind": "Secret"}
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [secret, inner]}))
    status, out, _ = run("validate", str(path))
    assert status == 1
    assert out.splitlines() == [
        f'{path}, items[1], items[0]: spec.servConfigV2: unknown key; did you mean "serveConfigV2"?',
        f"{path}: not checked: Secret",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("apiVersion: ray/v1\nkind: Rayservice", f'kind: unknown kind "Rayservice" {MEANT}'),
        ("kind: RyaService", f'kind: unknown kind "RyaService" {MEANT}'),
        ("apiVersion: rai.io/v1\nkind: Service", f'kind: unknown kind "Service" {MEANT}'),
        ("aplications: []", 'aplications: unknown key; did you mean "applications"?'),
        ("proxy_location: EveryNode\napplication: []", 'application: unknown key; did you mean "applications"?'),
        ("knd: RayService", 'knd: unknown key; did you mean "kind"?'),
        ("a: 1", "expected one of the keys applications, kind and models"),
    ],
)
def test_what_is_nearly_ours_is_told(run: Run, tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert run("validate", str(path))[:2] == (1, f"{path}: {problem}\n")


@pytest.mark.parametrize(("version", "kind"), [("serving.knative.dev/v1", "Service"), ("v1", "Service"), ("v1", "Pod")])
def test_what_others_have_is_theirs(run: Run, tmp_path: Path, version: str, kind: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"apiVersion: {version}\nkind: {kind}\n")
    assert run("validate", str(path)) == (0, f"{path}: not checked: {kind}\n", "")
