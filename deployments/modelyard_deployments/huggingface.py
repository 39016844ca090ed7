# SPDX-License-Identifier: Apache-2.0
"""Hugging Face: folders that ``save_pretrained`` or sentence-transformers wrote, on transformers.

What a model is for follows from the class its weights were saved from, or from the option ``task``. Tasks that predict
answer named tensors, and JSON where rows differ in length; embedding models and cross-encoders speak the OpenAI
protocol as well. Models that generate text are vLLM's where it is installed and has the architecture.

Nothing is fetched: a folder is all there is to a model. No code of it runs unless ``trust_remote_code`` allows it, and
weights are read as such, be they safetensors or PyTorch's pickles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

from pydantic import ValidationError

from modelyard.errors import ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard_deployments._huggingface_answers import QuestionAnswering
from modelyard_deployments._huggingface_backends import looks_generative, pick_backend
from modelyard_deployments._huggingface_classification import TextClassification, ZeroShotClassification
from modelyard_deployments._huggingface_folder import Folder, read_folder, read_json
from modelyard_deployments._huggingface_images import ImageClassification, ObjectDetection
from modelyard_deployments._huggingface_load import Loaded, load_weights
from modelyard_deployments._huggingface_openai import CrossEncoder, EmbeddingModel
from modelyard_deployments._huggingface_options import HuggingFaceOptions, find_strangers
from modelyard_deployments._huggingface_sentences import is_sentence_model
from modelyard_deployments._huggingface_sequences import TextToText
from modelyard_deployments._huggingface_tasks import GENERATIVE, infer_task
from modelyard_deployments._huggingface_tokens import FillMask, TokenClassification
from modelyard_deployments._huggingface_transcriptions import SpeechModel
from modelyard_deployments._vllm_arguments import count_workers, find_code_folders, names_code

_GGUF: Final = ".gguf"


class HuggingFaceFramework(Framework):
    """Loads a folder; one thread is the default."""

    options: ClassVar[type[Options]] = HuggingFaceOptions
    requires: ClassVar[str] = "huggingface"
    distribution: ClassVar[str] = "transformers"

    def runs_code(self, options: Mapping[str, Any]) -> bool:
        """Where ``trust_remote_code`` lets it, or an argument of vLLM's engine names code."""
        return bool(options.get("trust_remote_code")) or names_code(options.get("engine"))

    def code_locations(self, uri: str, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The artifact, and what engine arguments name beside it."""
        found = super().code_locations(uri, options)
        return found and (*found, *find_code_folders(options.get("engine"), options.get("trust_remote_code")))

    def workers(self, path: Path, options: HuggingFaceOptions) -> int:
        """Where vLLM generates, its own."""
        if options.model_file is not None:
            path /= options.model_file
        return count_workers(options.engine) if _picks_vllm(path, options) else 0

    def load(self, path: Path, options: HuggingFaceOptions) -> Model:
        """Loads the model for its task.

        Raises:
            ModelLoadError: The folder is another kind of thing or damaged, its weights are not all there, or an option
                does not fit its task.
        """
        import transformers  # noqa: F401  # its absence is told before anything else is

        if _is_gguf(path):
            return _load_generative(path, (), options)
        folder = read_folder(path)
        task = options.task or _find_task(folder)
        strangers = find_strangers(options, task)
        if strangers:
            raise ModelLoadError(f"options {', '.join(strangers)}: the task {task} has none of that name")
        if task in GENERATIVE:
            return _load_generative(path, folder.architectures, options)
        loaded = load_weights(folder, task, options)
        return _MODELS[task.partition("_")[0]](loaded, options, task)


def _picks_vllm(path: Path, options: HuggingFaceOptions) -> bool:
    wanted = options.wanted
    if wanted.name == "vllm":
        return True
    try:
        config = read_json(path / "config.json")
    except ModelLoadError:  # the replica says what is wrong with it
        return False
    generates = options.task in GENERATIVE if options.task else looks_generative(config)
    return generates and pick_backend(wanted, tuple(map(str, config.get("architectures") or ()))).name == "vllm"


def _is_gguf(path: Path) -> bool:
    if path.is_file():
        return path.name.lower().endswith(_GGUF)
    return not (path / "config.json").exists() and any(file.name.lower().endswith(_GGUF) for file in path.iterdir())


def _find_task(folder: Folder) -> str:
    if is_sentence_model(folder):
        return "feature-extraction"
    task = infer_task(folder.architectures)
    if task is None:
        names = ", ".join(folder.architectures) or "none"
        raise ModelLoadError(
            f"config.json: the task does not follow from the architectures {names}; set the option task"
        )
    return task


def _load_generative(path: Path, architectures: tuple[str, ...], options: HuggingFaceOptions) -> Model:
    pick = pick_backend(options.wanted, architectures)
    if pick.name == "transformers":
        from modelyard_deployments._generation_model import load_generation

        return load_generation(path, options, pick.reason)
    from modelyard_deployments.vllm import VLLMOptions, load_vllm

    try:
        return load_vllm(path, VLLMOptions(engine=_to_vllm_arguments(options)), pick.reason)
    except ValidationError as exc:
        raise ModelLoadError(f"option engine: {exc.errors()[0]['msg']}") from exc


def _to_vllm_arguments(options: HuggingFaceOptions) -> dict[str, Any]:
    """Arguments of vLLM's engine: those given as such, and what the other options mean there."""
    meant = {
        "max_model_len": options.max_length,
        "dtype": None if options.dtype == "auto" else options.dtype,
        "trust_remote_code": options.trust_remote_code or None,
    }
    return {name: value for name, value in meant.items() if value is not None} | options.engine


def _make_classifier(loaded: Loaded, options: HuggingFaceOptions, task: str) -> Model:
    kind = CrossEncoder if loaded.config.num_labels == 1 else TextClassification
    return kind(loaded, options, task)


_Loader: TypeAlias = Callable[[Loaded, HuggingFaceOptions, str], Model]
_MODELS: Final[Mapping[str, _Loader]] = {
    "text-classification": _make_classifier,
    "token-classification": TokenClassification,
    "fill-mask": FillMask,
    "feature-extraction": EmbeddingModel,
    "question-answering": QuestionAnswering,
    "zero-shot-classification": ZeroShotClassification,
    "summarization": TextToText,
    "translation": TextToText,
    "image-classification": ImageClassification,
    "object-detection": ObjectDetection,
    "automatic-speech-recognition": SpeechModel,
}
