# SPDX-License-Identifier: Apache-2.0
"""The commands that make a RayService and check files; neither needs a platform, a cluster or Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from modelyard.errors import InvalidConfig
from modelyard.kuberay import read_serve_file

CONFIGS = Path(__file__).parents[3] / "configs"
RENDER = ("render", "kuberay", "--config", str(CONFIGS / "platform.yaml"))


def test_a_manifest_is_printed_and_warnings_are_not_in_it(shell):
    status, out, err = shell.run(*RENDER)
    assert status == 0
    assert yaml.safe_load(out)["kind"] == "RayService"
    assert all(line.startswith("modelyard: warning: ") for line in err.splitlines())
    assert "catalog.url" in err


def test_what_is_written_is_valid_and_no_different_from_itself(shell, tmp_path: Path):
    path = str(tmp_path / "rayservice.yaml")
    assert shell.run(*RENDER, "--output", path)[:2] == (0, "")
    assert shell.run("validate", path) == (0, "", "")
    assert shell.run(*RENDER, "--diff", path)[:2] == (0, "")


def test_a_difference_is_printed_and_is_exit_status_1(shell, tmp_path: Path):
    path = tmp_path / "rayservice.yaml"
    shell.run(*RENDER, "-o", str(path))
    before = path.read_text()
    status, out, _ = shell.run(*RENDER, "--worker-memory", "24Gi", "--diff", str(path), "--output", str(path))
    assert status == 1
    changed = [line for line in out.splitlines() if line[0] in "+-"]
    assert changed[:2] == [f"--- {path}", "+++ new"]
    assert {line.strip("+- ") for line in changed[2:]} == {"memory: '16Gi'", "memory: '24Gi'"}
    assert path.read_text() == before.replace("'16Gi'", "'24Gi'")


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (("--name", "Mine"), 1, "modelyard: metadata.name: expected at most 47 lower-case letters"),
        (("--overlay", "cpus"), 1, 'modelyard: --overlay: unknown overlay "cpus"; did you mean "cpu"?'),
        (("--worker-memory", "24GB"), 2, 'expected a quantity as 500m, 2 or 4Gi, got "24GB"'),
        (("--diff", "none.yaml"), 2, "does not exist"),
        (("--node-selector", "gpu"), 2, "expected GROUP:LABEL=VALUE"),
    ],
)
def test_what_cannot_be_made_is_refused(shell, arguments, status, problem):
    found, out, err = shell.run(*RENDER, *arguments)
    assert (found, out) == (status, "")
    assert problem in " ".join(err.replace("│", " ").split())


def test_a_platform_file_that_is_wrong_is_refused(shell, tmp_path: Path):
    path = tmp_path / "platform.yaml"
    path.write_text((CONFIGS / "platform.yaml").read_text().replace("num_cpus", "num_cpu"))
    status, out, err = shell.run("render", "kuberay", "--config", str(path))
    assert (status, out) == (1, "")
    assert 'args.models[0].resources.num_cpu: unknown key; did you mean "num_cpus"?' in err


def test_every_configuration_file_is_valid(shell):
    assert shell.run("validate", *map(str, sorted(CONFIGS.glob("*.yaml")))) == (0, "", "")


def test_each_problem_is_a_line_with_file_and_key(shell, tmp_path: Path):
    path = tmp_path / "all.yaml"
    path.write_text(
        "proxy_locatoin: EveryNode\napplications: []\n"
        "---\nkind: ConfigMap\n---\nkind: Secret\n---\nkind: ConfigMap\n"
        "---\nmodels: [{name: a, framework: skleran, uri: m}]\n"
        "---\n- 1\n---\na: 1\n"
        "---\nkind: RayService\napiVersion: ray.io/v1\nmetadata: {name: a}\nspek: {}\n"
    )
    status, out, err = shell.run("validate", str(path))
    assert (status, err) == (1, "")
    lines = [line.removeprefix(str(path)) for line in out.splitlines()]
    assert lines[0] == ', document 1: proxy_locatoin: unknown key; did you mean "proxy_location"?'
    assert lines[1].startswith(", document 5: models[0].framework: expected one of custom, ")
    assert lines[2:] == [
        ", document 6: expected a mapping, got a list",
        ", document 7: expected one of the keys applications, kind and models",
        ', document 8: spek: unknown key; did you mean "spec"?',
        ", document 8: spec: expected a mapping, got nothing",
        ": not checked: ConfigMap, Secret",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected a document, got none"),
        ("a: [", "is not YAML in line 1"),
        ("a: 1\nb: {c: 1, c: 2}", 'is not YAML in line 2, column 11: the key "c" again'),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(shell, tmp_path: Path, text, problem):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    status, out, _ = shell.run("validate", str(path))
    assert status == 1
    assert problem in out
    assert shell.run("validate", str(tmp_path / "none.yaml"))[0] == 1


def test_every_key_inside_the_serve_file_of_a_rayservice_is_checked(shell, tmp_path: Path):
    path = tmp_path / "rayservice.yaml"
    shell.run(*RENDER, "-o", str(path))
    made = path.read_text()
    keys = {line.strip(" -").partition(":")[0] for line in made.splitlines() if line.startswith("    ") and ":" in line}
    inside = list(yaml.safe_load(yaml.safe_load(made)["spec"]["serveConfigV2"]))
    assert set(inside) <= keys
    for key in (*inside, "import_path", "max_surge_percent", "framework", "max_replicas", "num_cpus", "num_replicas"):
        path.write_text(
            made.replace(f"{key}:", f"{key}x:", 1) if key in inside else made.replace(f" {key}:", f" {key}x:", 1)
        )
        status, out, _ = shell.run("validate", str(path))
        assert status == 1, key
        assert f'{key}x: unknown key; did you mean "{key}"?' in out, key


@pytest.mark.parametrize("text", ["a: [", "[]", "a: 1\n---\nb: 2"])
def test_a_serve_file_that_is_none_is_refused(text):
    with pytest.raises(InvalidConfig, match=r"spec\.serveConfigV2: "):
        read_serve_file({"spec": {"serveConfigV2": text}})
