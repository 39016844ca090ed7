# SPDX-License-Identifier: Apache-2.0
"""Engine arguments are checked without importing vLLM, and against the very classes that it has."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import check_options, get_framework, load_model
from modelyard_deployments._generation_settings import SETTINGS, SHARED
from modelyard_deployments._vllm_arguments import OURS, find_architectures, find_arguments, find_problem
from modelyard_deployments._vllm_engine import check_platform, check_plugins, import_plugins

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


@needs_vllm
def test_what_both_backends_have_under_one_name() -> None:
    assert SETTINGS & find_arguments() == SHARED


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
        ("disable_log_stats", "but by nothing: the platform's metrics are made of them"),
        ("ssl_keyfile", "but by nothing: TLS ends at a gateway"),
        ("uds", "but by http_options"),
        ("xyzzy", 'vLLM has no engine argument "xyzzy"'),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=r"options\.engine") as caught:
        check_options(get_framework("vllm"), {"engine": {name: 1}})
    assert said in str(caught.value)


def test_known_arguments_are_taken() -> None:
    assert [find_problem(name) for name in ("max_model_len", "tool_call_parser", "chat_template", "seed")] == [""] * 4


def test_workers_are_the_product_of_all_that_is_parallel(tmp_path: Path) -> None:
    framework = get_framework("vllm")
    engine: dict[str, Any] = {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "data_parallel_size": 3}
    assert framework.workers(tmp_path, check_options(framework, {"engine": engine})) == 24
    engine["prefill_context_parallel_size"] = 2
    assert framework.workers(tmp_path, check_options(framework, {"engine": engine})) == 48
    engine["data_parallel_size"] = "1"  # as it comes from a template
    assert framework.workers(tmp_path, check_options(framework, {"engine": engine})) == 16
    assert framework.workers(tmp_path, check_options(framework, {})) == 1


def test_code_of_the_folder_runs_only_where_it_is_asked_for() -> None:
    framework = get_framework("vllm")
    assert framework.runs_code({"engine": {"trust_remote_code": True}})
    assert not framework.runs_code({"engine": {"trust_remote_code": False}})
    assert not framework.runs_code({"engine": "nonsense"})
    assert not framework.runs_code({})


@pytest.mark.parametrize("framework", ["vllm", "huggingface"])
@pytest.mark.parametrize(
    ("engine", "runs"),
    [
        ({"reasoning_parser_plugin": "parser.py"}, True),
        ({"tool_parser_plugin": "parser.py"}, True),
        ({"middleware": ["my.module.Middleware"]}, True),
        ({"worker_cls": "my.module.Worker"}, True),
        ({"worker_cls": "auto"}, False),
        ({"worker_extension_cls": "my.module.Extension"}, True),
        ({"logits_processors": ["my.module:Processor"]}, True),
        ({"scheduler_cls": "my.module.Scheduler"}, True),
        ({"model_class_overrides": {"LlamaForCausalLM": "my.module:Model"}}, True),
        ({"kv_transfer_config": {"kv_connector": "Mine", "kv_connector_module_path": "my.module"}}, True),
        (
            {"kv_transfer_config": {"kv_connector_extra_config": {"connectors": [{"kv_connector_module_path": "m"}]}}},
            True,
        ),
        ({"kv_transfer_config": {"kv_connector": "NixlConnector"}}, False),
        ({"speculative_config": {"method": "custom_class", "model": "my.module.Proposer"}}, True),
        ({"speculative_config": {"model": "my.module.Proposer"}}, True),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}, False),
        ({"speculative_config": {"model": "/models/draft-1.5b"}}, False),
        ({"compilation_config": {"inductor_passes": {"a": "my.module.run"}}}, True),
        ({"compilation_config": {"backend": "my.module.compile"}}, True),
        ({"compilation_config": {"backend": "my.module:compile.it"}}, True),
        ({"compilation_config": {"backend": "inductor"}}, False),
        ({"compilation_config": {"cache_dir": "/tmp/cache"}}, True),
        ({"kv_transfer_config": {"kv_connector_extra_config": {"cache_policy_module_path": "my.module"}}}, True),
        ({"kv_transfer_config": {"kv_connector_extra_config": {"secondary_tiers": [{"module_path": "m"}]}}}, True),
        ({"tensor_parallel_size": 2, "dtype": "bfloat16"}, False),
    ],
)
def test_arguments_that_name_code_run_it(framework: str, engine: dict[str, Any], runs: bool) -> None:
    assert get_framework(framework).runs_code({"engine": engine}) is runs


@pytest.mark.parametrize("framework", ["vllm", "huggingface"])
def test_code_beside_the_models_own_has_to_be_allowed_too(framework: str) -> None:
    engine = {
        "tokenizer": "/elsewhere/tokenizer",
        "hf_config_path": "/elsewhere/config",
        "speculative_config": {"model": "/elsewhere/draft", "num_speculative_tokens": 2},
    }
    find = get_framework(framework).code_locations
    assert find("models/m", {"engine": engine}) == (), "nothing runs code"
    places = find("models/m", {"engine": engine | {"trust_remote_code": True}})
    assert places == ("models/m", "/elsewhere/tokenizer", "/elsewhere/config", "/elsewhere/draft")
    with_plugin = {"tool_parser_plugin": "parser.py", "tokenizer": "/elsewhere/tokenizer"}
    assert find("models/m", {"engine": with_plugin}) == ("models/m",), "of the tokenizer none runs"
    ngram = {"trust_remote_code": True, "speculative_config": {"model": "ngram"}}
    assert find("models/m", {"engine": ngram}) == ("models/m",)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"tensor_parallel_size": "two"}, 'tensor_parallel_size: expected a whole number from 1 on, got "two"'),
        ({"data_parallel_size": 0}, "data_parallel_size: expected a whole number from 1 on, got 0"),
        ({"pipeline_parallel_size": True}, "pipeline_parallel_size: expected a whole number from 1 on, got True"),
        ({"kv_transfer_config": "x"}, "kv_transfer_config: expected a mapping, got str"),
        ({"reasoning_parser_plugin": "/tmp/x.py"}, "expected a Python file in the model's folder"),
        ({"tool_parser_plugin": "../x.py"}, "expected a Python file in the model's folder"),
        ({"structured_outputs_config": {"reasoning_parser_plugin": "x.py"}}, "but by reasoning_parser_plugin"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_deployment(engine: dict[str, Any], said: str) -> None:
    for name in ("vllm", "huggingface"):
        with pytest.raises(InvalidConfig) as caught:
            check_options(get_framework(name), {"engine": engine})
        assert said in str(caught.value)


@pytest.mark.parametrize(("has_gpus", "is_for_cpus"), [(True, False), (False, True)])
def test_gpus_and_the_vllm_for_them_go_together(has_gpus: bool, is_for_cpus: bool) -> None:
    check_platform(has_gpus, is_for_cpus)
    with pytest.raises(
        ModelLoadError, match=r"resources\.num_gpus: .*`python -m modelyard_deployments.vllm install --"
    ):
        check_platform(has_gpus, not is_for_cpus)


@needs_vllm
def test_parsers_of_the_models_folder_are_run(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text("print('parser')")
    code = (
        "from pathlib import Path\n"
        "from modelyard_deployments._vllm_engine import import_plugins\n"
        "arguments = {'tool_parser_plugin': 'ours.py', 'reasoning_parser_plugin': '', 'seed': 1}\n"
        f"import_plugins(Path({str(tmp_path)!r}), arguments)\n"
        "print(arguments['tool_parser_plugin'])\n"
        "try:\n"
        "    arguments = {'tool_parser_plugin': 'ours.py', 'tool_call_parser': 'mine'}\n"
        f"    import_plugins(Path({str(tmp_path)!r}), arguments)\n"
        "except ValueError:\n"
        "    print('refused')\n"
        f"import_plugins(Path({str(tmp_path)!r}), {{'tool_parser_plugin': 'ours.py', 'tool_call_parser': 'hermes'}})"
    )
    assert ask_vllm(code) == {"parser", str(tmp_path / "ours.py"), "refused"}
    with pytest.raises(ValueError, match="expected a Python file in the model's folder"):
        import_plugins(tmp_path, {"reasoning_parser_plugin": "none.py"})


def test_a_reasoning_parser_of_the_folder_and_gpus_do_not_go_together() -> None:
    check_plugins({"reasoning_parser_plugin": "ours.py"}, has_gpus=False)
    check_plugins({"tool_parser_plugin": "ours.py"}, has_gpus=True)
    with pytest.raises(ValueError, match="reasoning_parser_plugin: expected none on GPUs"):
        check_plugins({"reasoning_parser_plugin": "ours.py"}, has_gpus=True)


def test_a_missing_vllm_is_told_with_both_commands(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    code = (
        "import sys\n"
        "sys.modules['vllm'] = None\n"
        "from pathlib import Path\n"
        "from modelyard.model import load_model\n"
        f"load_model('vllm', Path({str(tmp_path)!r}), {{}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert 'pip install "modelyard[vllm]", and then python -m modelyard_deployments.vllm install' in last


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"expected a folder with config\.json"):
        load_model("vllm", tmp_path, {})


def test_adapters_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"options\.adapters: expected a folder"):
        load_model("vllm", tmp_path, {"adapters": str(tmp_path / "none")})
