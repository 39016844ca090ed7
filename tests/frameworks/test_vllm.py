# SPDX-License-Identifier: Apache-2.0
"""Engine arguments are checked without importing vLLM, and against the very classes that it has."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import check_options, get_framework, load_model
from modelyard_deployments._vllm_arguments import OURS, find_architectures, find_arguments, find_problem

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm: python -m modelyard_deployments.vllm install"
)


def ask_vllm(code: str) -> set[str]:
    """What it prints, in a process of its own: vLLM is no guest in that of other tests."""
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split())


@needs_vllm
def test_the_names_are_those_of_vllms_own_classes() -> None:
    code = (
        "from dataclasses import fields\n"
        "from vllm.engine.arg_utils import AsyncEngineArgs\n"
        "from vllm.entrypoints.launchers.cli_args import FrontendArgs\n"
        "print(*(one.name for kind in (AsyncEngineArgs, FrontendArgs) for one in fields(kind)))"
    )
    assert find_arguments() == ask_vllm(code) >= OURS.keys()


@needs_vllm
def test_the_architectures_are_those_of_vllms_registry() -> None:
    code = "from vllm.model_executor.models import ModelRegistry\nprint(*ModelRegistry.get_supported_archs())"
    assert find_architectures() == ask_vllm(code)
    assert "LlamaForCausalLM" in find_architectures()


def test_checking_imports_nothing_of_it() -> None:
    code = (
        "import sys\n"
        "from modelyard.model import check_options, get_framework\n"
        "check_options(get_framework('vllm'), {'engine': {'max_model_len': 1}})\n"
        "print(sorted({'vllm', 'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@needs_vllm
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_modellen", 'did you mean "max_model_len"?'),
        ("tensor-parallel-size", 'did you mean "tensor_parallel_size"?'),
        ("model", "but by uri"),
        ("enable_lora", "but by options.adapters"),
        ("xyzzy", 'vLLM has no engine argument "xyzzy"'),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=r"options\.engine") as caught:
        check_options(get_framework("vllm"), {"engine": {name: 1}})
    assert said in str(caught.value)


def test_known_arguments_are_taken() -> None:
    assert [find_problem(name) for name in ("max_model_len", "tool_call_parser", "chat_template", "seed")] == [""] * 4


def test_workers_are_tensor_times_pipeline_times_data_parallel(tmp_path: Path) -> None:
    framework = get_framework("vllm")
    engine = {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "data_parallel_size": 3}
    assert framework.workers(tmp_path, check_options(framework, {"engine": engine})) == 24
    assert framework.workers(tmp_path, check_options(framework, {})) == 1


def test_code_of_the_folder_runs_only_where_it_is_asked_for() -> None:
    framework = get_framework("vllm")
    assert framework.runs_code({"engine": {"trust_remote_code": True}})
    assert not framework.runs_code({"engine": {"trust_remote_code": False}})
    assert not framework.runs_code({"engine": "nonsense"})
    assert not framework.runs_code({})


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"expected a folder with config\.json"):
        load_model("vllm", tmp_path, {})


def test_adapters_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"options\.adapters: expected a folder"):
        load_model("vllm", tmp_path, {"adapters": str(tmp_path / "none")})
