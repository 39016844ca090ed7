# SPDX-License-Identifier: Apache-2.0
"""Loads a generative model of transformers: weights, tokenizer, limits and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GgufConfig

from modelyard.errors import ModelLoadError
from modelyard_deployments._generation_engine import Engine
from modelyard_deployments._generation_grammar import Grammars
from modelyard_deployments._generation_prompts import Prompts
from modelyard_deployments._generation_rows import make_rows
from modelyard_deployments._generation_runtime import Runtime
from modelyard_deployments._generation_seq2seq import Seq2SeqRows
from modelyard_deployments._generation_settings import GenerationOptions, read_settings
from modelyard_deployments._gpu import find_torch_device
from modelyard_deployments._huggingface_load import quiet, reasons

_DEFAULT_LEN: Final = 2048
_DEFAULT_PLACES: Final = 32768
_DEFAULTS: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What ``generation_config.json`` may say of sampling. Source: vLLM ``ModelConfig.get_diff_sampling_param``."""


def load_runtime(path: Path, options: GenerationOptions) -> Runtime:
    """Loads the weights and starts the engine.

    Args:
        path: A folder as ``save_pretrained`` writes it, or a ``.gguf`` file.
        options: The framework's.

    Raises:
        ModelLoadError: It cannot be loaded, or an option does not fit it.
    """
    settings = read_settings(options.engine)
    with quiet(), reasons(path, "the model"):
        model = _load_model(path, options, settings.attention)
        folder, more = _to_source(path)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=options.trust_remote_code, **more
        )
    max_model_len = _find_max_model_len(model.config, options.max_length or settings.max_model_len)
    places = settings.cache_tokens or max(max_model_len, _DEFAULT_PLACES)
    if places < max_model_len:
        raise ModelLoadError(
            f"option engine.cache_tokens: expected at least the {max_model_len} tokens that one answer may need, "
            f"got {places}; or set max_length"
        )
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ends = _find_ends(model, tokenizer)
    is_apart = bool(model.config.is_encoder_decoder)
    engine = Engine(
        Seq2SeqRows(model, places) if is_apart else make_rows(model, places),
        ends,
        model.device,
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        prefill_tokens=settings.prefill_tokens,
        cache_tokens=places,
        # Ray sets OMP_NUM_THREADS to the replica's CPUs, and torch keeps to it.
        threads=options.threads if "threads" in options.model_fields_set else None,
    )
    return Runtime(
        engine,
        tokenizer,
        Prompts(tokenizer, settings.chat_template, vocabulary, max_model_len, is_apart),
        Grammars(tokenizer, vocabulary, ends),
        _find_defaults(model.generation_config),
        settings.default_max_tokens,
    )


def _load_model(path: Path, options: GenerationOptions, attention: str | None) -> Any:
    folder, more = _to_source(path)
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": options.trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **common, **more)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if more:
        common["quantization_config"] = GgufConfig(dequantize=True)
    if attention is not None:
        common["attn_implementation"] = attention
    device = find_torch_device(options.device)
    # On a CPU, FP32 is the fastest for few rows, and what answers are compared in.
    wanted = "float32" if options.dtype == "auto" and device == "cpu" else options.dtype
    dtype = wanted if wanted == "auto" else getattr(torch, wanted)
    model = kind.from_pretrained(folder, dtype=dtype, **common, **more)
    return model.to(device).eval().requires_grad_(False)


def _to_source(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder, and the file in it where it is a GGUF one."""
    return (path.parent, {"gguf_file": path.name}) if path.suffix.lower() == ".gguf" else (path, {})


def _find_max_model_len(config: Any, wanted: int | None) -> int:
    text = config.get_text_config(decoder=True)
    own = next(
        (value for name in ("max_position_embeddings", "n_positions") if (value := getattr(text, name, None))), None
    )
    if wanted is not None and own is not None and wanted > own:
        raise ModelLoadError(f"option max_length: the model has {own} positions, got {wanted}")
    return wanted or own or _DEFAULT_LEN


def _find_ends(model: Any, tokenizer: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)


def _find_defaults(config: Any) -> Mapping[str, Any]:
    return {name: value for name in _DEFAULTS if (value := getattr(config, name, None)) is not None}
