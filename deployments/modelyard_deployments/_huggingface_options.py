# SPDX-License-Identifier: Apache-2.0
"""Options of ``framework: huggingface``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from modelyard.model import Options
from modelyard_deployments._huggingface_backends import Backend, Wanted, find_wanted
from modelyard_deployments._huggingface_tasks import GENERATIVE, PREDICTIVE, to_task

TopK: TypeAlias = PositiveInt | Literal["all"]
Pooling: TypeAlias = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Function: TypeAlias = Literal["default", "softmax", "sigmoid", "none"]
Aggregation: TypeAlias = Literal["none", "simple", "first", "average", "max"]


class HuggingFaceOptions(Options):
    """Options of a model for transformers; those of one task are refused for another."""

    task: Annotated[str, AfterValidator(to_task)] | None = Field(
        default=None, description="What the model is for; inferred from `config.json` unless given."
    )
    backend: Backend = Field(
        default="auto",
        description="What generates text: `auto` is vLLM where it is installed and has the architecture, and no "
        "argument of `engine` is given that only transformers has.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Numbers to compute in; `auto` is float32 on a CPU and as saved on a GPU."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where it computes; `auto` is the GPU where the replica has one."
    )
    threads: int = Field(default=1, ge=1, description="Threads of one operation.")
    trust_remote_code: bool = Field(
        default=False, description="Run the Python files of the artifact, which then has to lie in an allowed location."
    )
    max_length: PositiveInt | None = Field(
        default=None, description="Tokens of one text; the model's own limit unless given."
    )
    truncation: bool = Field(default=True, description="Cut texts that are longer; false refuses them.")
    max_batch_tokens: PositiveInt | None = Field(
        default=None,
        description="Tokens of one batch with their padding, more rows are computed in several; 1024 on a CPU, where "
        "large ones are slower, and 16384 on a GPU unless given.",
    )
    top_k: TopK | None = Field(
        default=None, description="How many answers: classes, fillings, spans; `all` are all classes."
    )
    function_to_apply: Function = Field(
        default="default", description="What makes scores of a classifier's logits; by default what its config says."
    )
    aggregation_strategy: Aggregation = Field(default="none", description="How tokens are joined to entities.")
    ignore_labels: tuple[str, ...] = Field(default=("O",), description="Labels of tokens that are no entities.")
    candidate_labels: tuple[str, ...] = Field(
        default=(), description="Classes of a zero-shot classifier where a request names none."
    )
    hypothesis_template: str = Field(
        default="This example is {}.", pattern=r"\{\}", description="The sentence that a class stands in."
    )
    multi_label: bool = Field(default=False, description="Each class of a zero-shot classifier is judged by itself.")
    threshold: float = Field(default=0.5, ge=0, le=1, description="Score from which on an object is one.")
    pooling: Pooling | None = Field(
        default=None, description="How token embeddings become one; as the folder says unless given, else `mean`."
    )
    normalize: bool | None = Field(
        default=None, description="Embeddings have the length 1; as the folder says unless given, else true."
    )
    prompt_name: str | None = Field(
        default=None, description="The folder's prompt to put before texts, where a request names none."
    )
    matryoshka: bool | None = Field(
        default=None, description="Embeddings may be cut to their first dimensions; as `config.json` says unless given."
    )
    source_language: str | None = Field(default=None, description="Of a multilingual translator, in its own words.")
    target_language: str | None = Field(default=None, description="Of a multilingual translator, in its own words.")
    max_new_tokens: PositiveInt | None = Field(
        default=None,
        description="Length of a summary, translation or transcript; the model's own unless given, else 256.",
    )
    chunk_length_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds of audio that are heard at once; needed for long recordings by models other than Whisper.",
    )
    engine: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the engine that generates text, vLLM's own or transformers'."
    )

    @model_validator(mode="after")
    def _check_engine(self) -> HuggingFaceOptions:
        _ = self.wanted
        return self

    @property
    def wanted(self) -> Wanted:
        """Which backend the options want, taken together.

        Raises:
            ValueError: They do not go together.
        """
        given = self.model_fields_set - ({"device"} if self.device == "auto" else set())
        return find_wanted(self.backend, given, self.engine)


_TEXTS: Final = ("max_length", "truncation", "max_batch_tokens")
OPTIONS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "text-classification": (*_TEXTS, "top_k", "function_to_apply"),
    "token-classification": (*_TEXTS, "aggregation_strategy", "ignore_labels"),
    "fill-mask": (*_TEXTS, "top_k"),
    "feature-extraction": (*_TEXTS, "pooling", "normalize", "prompt_name", "matryoshka"),
    "question-answering": (*_TEXTS, "top_k"),
    "zero-shot-classification": (*_TEXTS, "candidate_labels", "hypothesis_template", "multi_label"),
    "summarization": (*_TEXTS, "max_new_tokens"),
    "translation": (*_TEXTS, "max_new_tokens", "source_language", "target_language"),
    "image-classification": ("top_k", "function_to_apply"),
    "object-detection": ("threshold",),
    "automatic-speech-recognition": ("chunk_length_s", "max_new_tokens"),
    **dict.fromkeys(GENERATIVE, ("backend", "engine", "max_length")),
}
"""Which options a task has beside those that all have."""

COMMON: Final = ("model_file", "task", "dtype", "device", "threads", "trust_remote_code")


def find_strangers(options: HuggingFaceOptions, task: str) -> list[str]:
    """Options that were given, but mean nothing to the task."""
    known = {*COMMON, *OPTIONS_OF[task.partition("_")[0]]}
    # "backend: transformers" says of a predictive model what is so anyway.
    if task.partition("_")[0] in PREDICTIVE and options.backend != "vllm":
        known.add("backend")
    return sorted(options.model_fields_set - known)
