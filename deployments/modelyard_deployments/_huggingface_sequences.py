# SPDX-License-Identifier: Apache-2.0
"""Summaries and translations: a text goes in, another one comes out. Nothing is sampled, so answers are repeatable."""

from __future__ import annotations

from typing import Any, Final

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Model
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Parameters, Tensors
from modelyard_deployments._huggingface_encoder import TextEncoder
from modelyard_deployments._huggingface_load import Loaded
from modelyard_deployments._huggingface_options import HuggingFaceOptions
from modelyard_deployments._huggingface_values import read_count, read_parameter, to_text_array, to_texts

_TEXT: Final = "text"
_OUTPUTS: Final = {"summarization": "summary_text", "translation": "translation_text"}
_NEW_TOKENS: Final = 256
_COUNTS: Final = ("max_new_tokens", "min_new_tokens", "num_beams", "no_repeat_ngram_size")
_NUMBERS: Final = ("length_penalty", "repetition_penalty")
_GENERATION: Final = (
    "early_stopping",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beams",
)
"""What ``task_specific_params`` in a ``config.json`` may say of generation."""


class TextToText(Model):
    """Summaries or translations."""

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        self._encoder = TextEncoder(loaded, options)
        self._task = task.partition("_")[0]
        own = _read_task(loaded.folder.config, task)
        self._prefix = str(own.get("prefix", ""))
        self._settings: dict[str, Any] = {name: own[name] for name in _GENERATION if name in own}
        generation = loaded.model.generation_config
        if options.max_new_tokens is not None:
            self._settings.pop("max_length", None)
            self._settings["max_new_tokens"] = options.max_new_tokens
        elif "max_length" not in self._settings and not (generation.max_new_tokens or generation.max_length):
            self._settings["max_new_tokens"] = _NEW_TOKENS
        self._languages = (options.source_language, options.target_language)
        self._is_multilingual = hasattr(self._encoder.tokenizer, "src_lang")
        self._check_languages()
        self._signature = Signature(
            inputs=(TensorSpec(_TEXT, "BYTES", (-1,)),),
            outputs=(TensorSpec(_OUTPUTS[self._task], "BYTES", (-1,)),),
            any_input_name=True,
            example={_TEXT: "The weather is fine today."},
        )

    @property
    def signature(self) -> Signature:
        """``text``; ``summary_text`` or ``translation_text``."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Writes texts.

        Raises:
            InvalidRequest: A text is too long where it is not cut, or a parameter is not what it has to be.
        """
        texts = [self._prefix + text for text in to_texts(_TEXT, inputs[_TEXT])]
        settings = self._settings | _read_settings(parameters)
        if "max_new_tokens" in settings:
            settings.pop("max_length", None)
        with self._encoder.lock:
            settings |= self._set_languages(parameters)
            rows = self._encoder.to_rows(self._encoder.tokenize(f'input "{_TEXT}"', texts))
            return {outputs[0]: to_text_array(self._write(rows, settings))}

    def _write(self, rows: list[dict[str, list[int]]], settings: dict[str, Any]) -> list[str]:
        import torch

        written: dict[int, str] = {}
        for batch, tensors in self._encoder.batches(rows):
            with torch.inference_mode():
                ids = self._encoder.loaded.model.generate(**tensors, do_sample=False, **settings)
            texts = self._encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
            written |= zip(batch, texts, strict=True)
        return [written[row] for row in range(len(rows))]

    def _check_languages(self) -> None:
        """Raises ModelLoadError where there are languages and the model knows none."""
        if any(self._languages) and not self._is_multilingual:
            raise ModelLoadError("options source_language and target_language: the model translates one pair only")
        for language in filter(None, self._languages):
            if self._find_language(language) is None:
                raise ModelLoadError(f'options source_language and target_language: the model has no "{language}"')

    def _set_languages(self, parameters: Parameters) -> dict[str, Any]:
        """Sets the tokenizer to the source's; says what the text has to begin with."""
        if not self._is_multilingual:
            return {}
        source = read_parameter(parameters, "source_language", str, self._languages[0] or "")
        target = read_parameter(parameters, "target_language", str, self._languages[1] or "")
        for name, language in (("source_language", source), ("target_language", target)):
            if language and self._find_language(language) is None:
                raise InvalidRequest(f'parameter "{name}": the model has no language "{language}"')
        if source:
            self._encoder.tokenizer.src_lang = source
        return {"forced_bos_token_id": self._find_language(target)} if target else {}

    def _find_language(self, name: str) -> int | None:
        """The token that stands for a language: that of its name, or what the tokenizer says (M2M100)."""
        tokenizer = self._encoder.tokenizer
        if hasattr(tokenizer, "get_lang_id"):
            return int(tokenizer.get_lang_id(name)) if name in tokenizer.lang_code_to_token else None
        token = tokenizer.convert_tokens_to_ids(name)
        return None if token in (None, tokenizer.unk_token_id) else int(token)


def _read_task(config: Any, task: str) -> dict[str, Any]:
    """What ``config.json`` says of the task; of several translations that of the only one."""
    known = config.get("task_specific_params") or {}
    named = [name for name in known if name.startswith("translation")]
    found = known.get(task) or (known[named[0]] if task == "translation" and len(named) == 1 else {})
    return dict(found)


def _read_settings(parameters: Parameters) -> dict[str, Any]:
    """Generation as the request wants it."""
    counts = {name: read_count(parameters, name, 1) for name in _COUNTS if name in parameters}
    numbers = {name: read_parameter(parameters, name, float, 1.0) for name in _NUMBERS if name in parameters}
    return {**counts, **numbers}
