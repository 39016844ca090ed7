# SPDX-License-Identifier: Apache-2.0
"""Loading with transformers: from the folder alone, quietly, and refusing weights that are not all there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from modelyard.errors import ModelLoadError
from modelyard_deployments._gpu import find_torch_device
from modelyard_deployments._huggingface_folder import Folder
from modelyard_deployments._huggingface_options import HuggingFaceOptions

_CLASSES: Final = {
    "text-classification": ("AutoModelForSequenceClassification",),
    "zero-shot-classification": ("AutoModelForSequenceClassification",),
    "token-classification": ("AutoModelForTokenClassification",),
    "fill-mask": ("AutoModelForMaskedLM",),
    # Of encoder-decoders the first is the encoder alone, which is what makes embeddings.
    "feature-extraction": ("AutoModelForTextEncoding", "AutoModel"),
    "question-answering": ("AutoModelForQuestionAnswering",),
    "summarization": ("AutoModelForSeq2SeqLM",),
    "translation": ("AutoModelForSeq2SeqLM",),
    "image-classification": ("AutoModelForImageClassification",),
    "object-detection": ("AutoModelForObjectDetection",),
    "automatic-speech-recognition": ("AutoModelForCTC", "AutoModelForTDT", "AutoModelForSpeechSeq2Seq"),
}
_HEADLESS: Final = ("pooler.", "embeddings.position_ids")
"""Weights of the bare model that many folders lack, and no embedding of ours is made of."""
_SHOWN: Final = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to compute.

    Attributes:
        folder: Where it is from.
        model: Of transformers, on its device and without gradients.
        device: ``cpu`` or ``cuda``.
    """

    folder: Folder
    model: Any
    device: str

    @property
    def config(self) -> Any:
        """The model's configuration, with transformers' defaults."""
        return self.model.config


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from printing: what it would say is raised, or checked here."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield


def limit_threads(count: int) -> None:
    """Gives PyTorch and tokenizers so many threads, tokenizers unless the replica's environment says otherwise."""
    import torch

    torch.set_num_threads(count)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if count > 1 else "false")
    os.environ.setdefault("RAYON_NUM_THREADS", str(count))


def load_weights(folder: Folder, task: str, options: HuggingFaceOptions) -> Loaded:
    """The model with all its weights.

    Raises:
        ModelLoadError: transformers cannot load it, it is none for the task, or weights are missing.
    """
    import torch
    import transformers

    device = find_torch_device(options.device)
    dtype: Any = options.dtype if options.dtype != "auto" or device != "cpu" else "float32"
    limit_threads(options.threads)
    with quiet(), reasons(folder.model, "the model"):
        config = transformers.AutoConfig.from_pretrained(
            folder.model, local_files_only=True, trust_remote_code=options.trust_remote_code
        )
        kind = _find_class(config, folder, task)
        model, info = kind.from_pretrained(
            folder.model,
            config=config,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
        )
    _check_weights(info, task, type(model).__name__)
    return Loaded(folder, model.to(device).eval().requires_grad_(False), device)


def load_part(folder: Folder, kind: str, what: str, options: HuggingFaceOptions) -> Any:
    """What stands before the model: ``AutoTokenizer``, ``AutoImageProcessor``, ``AutoFeatureExtractor``.

    Raises:
        ModelLoadError: Its files are missing or damaged.
    """
    import transformers

    with quiet(), reasons(folder.model, what):
        part = getattr(transformers, kind).from_pretrained(
            folder.model, local_files_only=True, trust_remote_code=options.trust_remote_code
        )
    files = getattr(part, "vocab_files_names", {}).values()
    # Without any of them some tokenizers come without words, and know no text.
    if files and not any((folder.model / name).exists() for name in files):
        raise ModelLoadError(f"{folder.model.name}: expected a tokenizer in {', '.join(files)}, got none of them")
    return part


def _find_class(config: Any, folder: Folder, task: str) -> Any:
    import transformers

    names = _CLASSES[task.partition("_")[0]]
    remote = folder.config.get("auto_map", {})
    for name in names:
        kind = getattr(transformers, name, None)
        if kind is not None and (type(config) in kind._model_mapping or name in remote):
            return kind
    raise ModelLoadError(
        f'task {task}: transformers {transformers.__version__} has no such model of the type "{config.model_type}"; '
        f"the folder was saved from {', '.join(folder.architectures) or 'a class it does not name'}"
    )


def _check_weights(info: Any, task: str, kind: str) -> None:
    """Refuses what transformers would make up at random.

    Raises:
        ModelLoadError: Weights are missing or have another shape.
    """
    missing = sorted(info["missing_keys"])
    if task == "feature-extraction":
        missing = [name for name in missing if not name.startswith(_HEADLESS) and ".pooler." not in name]
    if missing:
        raise ModelLoadError(
            f"the weights lack {_list(missing)}, which {kind} has: the folder is that of another task than {task}, "
            "or was saved before it was trained"
        )
    if info["mismatched_keys"]:
        names = sorted(str(one[0] if isinstance(one, tuple) else one) for one in info["mismatched_keys"])
        raise ModelLoadError(f"{_list(names)} in the weights have other shapes than config.json says")


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


@contextlib.contextmanager
def reasons(path: Path, what: str) -> Iterator[None]:
    """Whatever the libraries raise becomes one sentence, without our folders.

    Raises:
        ModelLoadError: As said.
    """
    import transformers

    try:
        yield
    except (ModelLoadError, ModuleNotFoundError):
        raise
    except Exception as exc:  # damaged files raise errors of many kinds, and of many libraries
        version = transformers.__version__
        raise ModelLoadError(f"{path.name}: transformers {version} cannot load {what}: {to_reason(exc, path)}") from exc


def to_reason(exc: BaseException, path: Path) -> str:
    """The first sentences of a message, without our folders and without what concerns the hub."""
    text = str(exc).replace(f"{path}/", "").replace(str(path), "the model's folder")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(exc, ImportError):
        lines = [line for line in lines if "requires" in line or "install" in line] or lines
    if "trust_remote_code" in text:
        return "it needs Python files of its own; allow them with the option trust_remote_code: true"
    return " ".join(lines[:2])[:400] or type(exc).__name__


def named(function: Callable[..., T]) -> frozenset[str]:
    """Names of a function's arguments, but for those that it takes as ``**kwargs``."""
    import inspect

    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return frozenset(name for name, one in inspect.signature(function).parameters.items() if one.kind not in kinds)
