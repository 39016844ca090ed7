# SPDX-License-Identifier: Apache-2.0
"""How a generative model runs; the names are those of the framework's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """Limits and choices of one generative model.

    Attributes:
        dtype: What it computes in; ``auto`` is the file's own on a GPU, and FP32 on a CPU, which is the fastest there
            for few rows.
        device: Where it computes, ``cpu`` or ``cuda``; empty is CUDA where the replica has a GPU, else the CPU.
        threads: Threads of one step; None takes what ``OMP_NUM_THREADS`` says, which Ray sets to the replica's CPUs.
        max_model_len: Most tokens of prompt and answer together; None takes the model's own limit.
        max_running: Most sequences in the batch at once.
        max_waiting: Most sequences that wait for a place in the batch; more are refused with 429.
        cache_tokens: Most token places of the key-value cache, those that pad shorter sequences counted; None takes
            32768, or the model's limit where that is more.
        prefill_tokens: Most prompt tokens computed between two steps of those that already run.
        trust_remote_code: Run Python code that comes with the model.
        chat_template: A Jinja template instead of the tokenizer's own; a text, not a file's name.
        default_max_tokens: For answers whose request sets none over v2; OpenAI's routes have their own rules.
    """

    dtype: Dtype = "auto"
    device: str = ""
    threads: int | None = None
    max_model_len: int | None = None
    max_running: int = 16
    max_waiting: int = 256
    cache_tokens: int | None = None
    prefill_tokens: int = 512
    trust_remote_code: bool = False
    chat_template: str | None = None
    default_max_tokens: int = 256
