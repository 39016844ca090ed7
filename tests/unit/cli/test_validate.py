# SPDX-License-Identifier: Apache-2.0
"""Which documents of Kubernetes `modelyard validate` looks at, and which it only names."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("RayServce", 'did you mean "RayService"?'),
        ("Rayjob", 'did you mean "RayJob"?'),
        ("Deployment", "expected one of RayService, RayCluster, RayCronJob, RayJob"),
        ("1", "expected one of RayService, RayCluster, RayCronJob, RayJob"),
    ],
)
def test_a_kind_that_kuberay_does_not_have_is_a_problem(shell, tmp_path: Path, kind, hint):
    path = tmp_path / "a.yaml"
    path.write_text(f"apiVersion: ray.io/v1\nkind: {kind}\n")
    status, out, _ = shell.run("validate", str(path))
    assert status == 1
    assert out.startswith(f"{path}: kind: unknown kind ")
    assert out.endswith(f" of ray.io; {hint}\n")


@pytest.mark.parametrize(
    ("version", "kind"), [("ray.io/v1", "RayCluster"), ("ray.io/v1", "RayJob"), ("apps/v1", "Deployment")]
)
def test_kinds_that_are_spelt_right_are_named_and_not_checked(shell, tmp_path: Path, version, kind):
    path = tmp_path / "a.yaml"
    path.write_text(f"apiVersion: {version}\nkind: {kind}\n")
    assert shell.run("validate", str(path)) == (0, f"{path}: not checked: {kind}\n", "")
