# SPDX-License-Identifier: Apache-2.0
"""Question answering: the part of a context that answers a question.

transformers 5 has the models, but no pipeline for them any more; this is how the pipeline of version 4 chose.

Source: transformers 4 ``pipelines/question_answering.py``, ``postprocess`` and ``decode_spans``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelyard.errors import ModelLoadError
from modelyard.model import Model
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._huggingface_encoder import Place, TextEncoder
from modelyard_deployments._huggingface_load import Loaded
from modelyard_deployments._huggingface_options import HuggingFaceOptions
from modelyard_deployments._huggingface_scores import softmax
from modelyard_deployments._huggingface_values import read_count, to_json_array, to_text_array, to_texts

_QUESTION: Final = "question"
_CONTEXT: Final = "context"
_ANSWERS: Final = 3
_LONGEST: Final = 15
"""Tokens of an answer."""
_OUT_OF_CONTEXT: Final = -10000.0


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a context, by its first character and the one behind its last."""

    start: int
    end: int
    score: float


class QuestionAnswering(Model):
    """The best answer to each question, and when asked for several of them."""

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        self._encoder = TextEncoder(loaded, options)
        if not self._encoder.tokenizer.is_fast:
            raise ModelLoadError("task question-answering: expected tokenizer.json, which tells where a token stands")
        self._top_k = options.top_k if isinstance(options.top_k, int) else _ANSWERS
        self._signature = Signature(
            inputs=(TensorSpec(_QUESTION, "BYTES", (-1,)), TensorSpec(_CONTEXT, "BYTES", (-1,))),
            outputs=(
                TensorSpec("answer", "BYTES", (-1,)),
                TensorSpec("score", "FP32", (-1,)),
                TensorSpec("start", "INT64", (-1,)),
                TensorSpec("end", "INT64", (-1,)),
            ),
            on_request=(TensorSpec("answers", "BYTES", (-1,), content_type="json"),),
            example={_QUESTION: "Where was Ada born?", _CONTEXT: "Ada was born in London, in winter."},
        )

    @property
    def signature(self) -> Signature:
        """``question`` and ``context``; the answer, its score and its place in the context."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Looks for answers; a context that is too long is read in parts that overlap.

        Raises:
            InvalidRequest: A question is too long, or a text no UTF-8.
        """
        questions, contexts = to_texts(_QUESTION, inputs[_QUESTION]), to_texts(_CONTEXT, inputs[_CONTEXT])
        top_k = read_count(parameters, "top_k", self._top_k)
        longest = read_count(parameters, "max_answer_len", _LONGEST)
        with self._encoder.lock:
            found = self._find(questions, contexts, max(top_k, 1), longest)
        best = [spans[0] for spans in found]
        answers: dict[str, Array] = {
            "answer": to_text_array([text[one.start : one.end] for text, one in zip(contexts, best, strict=True)]),
            "score": np.array([one.score for one in best], dtype=np.float32),
            "start": np.array([one.start for one in best], dtype=np.int64),
            "end": np.array([one.end for one in best], dtype=np.int64),
        }
        if "answers" in outputs:
            answers["answers"] = to_json_array(
                [[_to_json(text, span) for span in spans] for text, spans in zip(contexts, found, strict=True)]
            )
        return {name: answers[name] for name in outputs}

    def _find(self, questions: list[str], contexts: list[str], top_k: int, longest: int) -> list[list[Span]]:
        encoder = self._encoder
        settings: dict[str, Any] = {"return_offsets_mapping": True}
        if encoder.max_length is not None:
            settings |= {"return_overflowing_tokens": True, "stride": min(128, encoder.max_length // 4)}
        encoded = encoder.tokenize(f'input "{_QUESTION}"', questions, contexts, cut="only_second", **settings)
        owners = encoded.get("overflow_to_sample_mapping", range(len(questions)))
        logits = encoder.run(encoder.to_rows(encoded), _take_spans)
        found: list[list[Span]] = [[] for _ in questions]
        for window, owner in enumerate(owners):
            found[owner] += _find_spans(encoded, window, *logits[window], top_k, longest)
        return [sorted(spans, key=lambda span: -span.score)[:top_k] or [Span(0, 0, 0.0)] for spans in found]


def _take_spans(outputs: Any, place: Place) -> tuple[Array, Array]:
    start, end = outputs.start_logits[place.index, : place.length], outputs.end_logits[place.index, : place.length]
    return start.float().numpy(force=True), end.float().numpy(force=True)


def _find_spans(encoded: Any, window: int, start: Array, end: Array, top_k: int, longest: int) -> Iterator[Span]:
    """The best spans of one part of the context, whole words each."""
    inside = np.array([part == 1 for part in encoded.sequence_ids(window)])
    if not inside.any():
        return
    starts, ends = softmax(np.where(inside, start, _OUT_OF_CONTEXT)), softmax(np.where(inside, end, _OUT_OF_CONTEXT))
    # Not before its beginning, and not too long; probabilities of tokens outside are zero but for rounding.
    scores = np.tril(np.triu(np.outer(starts * inside, ends * inside)), longest - 1)
    for flat in np.argsort(-scores, axis=None, kind="stable")[:top_k].tolist():
        first, last = divmod(flat, len(end))
        if scores[first, last] > 0:
            yield Span(*_to_characters(encoded, window, first, last), float(scores[first, last]))


def _to_characters(encoded: Any, window: int, first: int, last: int) -> tuple[int, int]:
    """Where the words begin and end that the tokens are of."""
    offsets, words = encoded["offset_mapping"][window], encoded.word_ids(window)
    parts = encoded.sequence_ids(window)
    while first and parts[first - 1] == 1 and words[first] is not None and words[first - 1] == words[first]:
        first -= 1
    while last + 1 < len(words) and parts[last + 1] == 1 and words[last] is not None and words[last + 1] == words[last]:
        last += 1
    return int(offsets[first][0]), int(offsets[last][1])


def _to_json(context: str, span: Span) -> dict[str, Any]:
    return {"answer": context[span.start : span.end], "score": span.score, "start": span.start, "end": span.end}
