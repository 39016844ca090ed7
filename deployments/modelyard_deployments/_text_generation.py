# SPDX-License-Identifier: Apache-2.0
"""A language model as an ordinary one: text in, text out, for ``generate`` and ``generate_stream`` of v2.

The names of the tensors are those of Triton's vLLM backend.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Any, Final

import numpy as np
import orjson

from modelyard.errors import InternalError, InvalidRequest, Overloaded
from modelyard.openai import EVENTS, OpenAIModel, OpenAIRequest, Part
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Parameters, Tensors

TEXT_SIGNATURE: Final = Signature(
    inputs=(TensorSpec("text_input", "BYTES", (1,)),),
    outputs=(TensorSpec("text_output", "BYTES", (1,)),),
    on_request=(TensorSpec("finish_reason", "BYTES", (1,)),),
    batch_axis=False,
    decoupled=True,
    example={"text_input": ["The capital of France is"]},
)
"""Of every language model; whatever else a client sends beside ``text_input`` is a sampling parameter."""

_STREAM: Final = "stream"
_SAMPLING: Final = "sampling_parameters"
"""JSON text with sampling parameters. Source: Triton's vLLM backend, "Sending your first inference"."""
_EXCLUDE: Final = "exclude_input_in_output"
"""Whether the answer alone is the output, or the text with it. Source: as above; there the text is in it by default."""
_FINISH: Final = "finish_reason"
_OVERLOADED: Final = 429
_SERVER_ERROR: Final = 500


async def generate_text(
    model: OpenAIModel,
    inputs: Tensors,
    outputs: Collection[str],
    parameters: Parameters,
    complete: Callable[[OpenAIRequest], AsyncGenerator[Part]] | None = None,
    can_stream: bool = True,
) -> AsyncGenerator[Tensors]:
    """Completes a text: the whole of it in one answer, or with the parameter ``stream`` piece by piece.

    Args:
        model: What completes.
        inputs: Of :data:`TEXT_SIGNATURE`.
        outputs: Those that are asked for.
        parameters: Those of OpenAI's completions, ``sampling_parameters`` and ``exclude_input_in_output``.
        complete: Its route ``completions``, where that is another here; with another length by default, say.
        can_stream: False makes one answer of it, whatever the parameters say.

    Raises:
        InvalidRequest: What the model does not take.
        Overloaded: It has no room for another.
    """
    text = _read_text(inputs)
    asked, excludes = _to_completion(text, parameters)
    asked[_STREAM] = asked[_STREAM] and can_stream
    asked.setdefault("model", model.name)
    answer = (complete or model.answer)(OpenAIRequest("completions", _to_body(asked)))
    before = "" if excludes else text
    try:
        async for part in answer:
            if part.status != 200:
                raise to_exception(_find_error(part.data), part.status)
            if before and asked[_STREAM]:
                yield _to_outputs(before, "")
                before = ""
            for piece, finish in _pieces(part):
                if piece or not asked[_STREAM] or (finish and _FINISH in outputs):
                    yield _to_outputs(before + piece, finish)
    finally:
        await answer.aclose()


def _read_text(inputs: Tensors) -> str:
    try:
        text: str = inputs["text_input"].reshape(-1)[0].decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f'input "text_input": expected UTF-8, got {exc.object[:20]!r}') from None
    return text


def _to_completion(text: str, parameters: Parameters) -> tuple[dict[str, Any], bool]:
    """The body of the call, and whether the answer is the output without the text before it."""
    asked: dict[str, Any] = dict(parameters)
    for name, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):  # in JSON it would be nothing at all
            raise InvalidRequest(f'parameter "{name}": expected a finite number, got {value}')
    asked |= _read_sampling(asked.pop(_SAMPLING, "{}"))
    excludes = asked.pop(_EXCLUDE, True)
    for name, value in ((_STREAM, asked.get(_STREAM, False)), (_EXCLUDE, excludes)):
        if not isinstance(value, bool):
            raise InvalidRequest(f'parameter "{name}": expected true or false, got {value!r}')
    return {_STREAM: False, **asked, "prompt": text}, excludes


def _read_sampling(text: object) -> dict[str, Any]:
    if not isinstance(text, str):
        raise InvalidRequest(f'parameter "{_SAMPLING}": expected a JSON object as text, got {text!r}')
    try:
        sampling = orjson.loads(text)  # refuses NaN, and what is nested too deeply
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f'parameter "{_SAMPLING}": expected a JSON object: {exc}') from None
    if not isinstance(sampling, dict):
        raise InvalidRequest(f'parameter "{_SAMPLING}": expected a JSON object')
    return sampling


def _to_body(asked: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(asked)
    except TypeError as exc:
        raise InvalidRequest(f"the parameters cannot be written as JSON: {exc}") from None


def _pieces(part: Part) -> list[tuple[str, str]]:
    """The texts in one reply, or in the events of one part of it, each with why it ended; empty before its end."""
    if part.content_type != EVENTS:
        return [_to_piece(choice) for choice in orjson.loads(part.data)["choices"]]
    pieces = []
    for event in part.data.split(b"\n\n"):
        data = event.removeprefix(b"data: ")
        if data and data != b"[DONE]" and not data.startswith(b":"):
            document = orjson.loads(data)
            if "error" in document:
                raise to_exception(document["error"], _SERVER_ERROR)
            pieces += [_to_piece(choice) for choice in document["choices"]]
    return pieces


def _to_piece(choice: Mapping[str, Any]) -> tuple[str, str]:
    return choice["text"], choice.get(_FINISH) or ""


def _to_outputs(text: str, finish: str) -> Tensors:
    return {"text_output": np.array([text.encode()], object), _FINISH: np.array([finish.encode()], object)}


def _find_error(data: bytes) -> Mapping[str, Any]:
    try:
        error = orjson.loads(data)["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    return error if isinstance(error, dict) else {"message": data.decode(errors="replace")}


def to_exception(error: Mapping[str, Any], status: int) -> InvalidRequest | Overloaded | InternalError:
    """The error of an error object, and of the status it came with.

    Returns:
        A client's mistake, a full queue, or a failure.
    """
    message = str(error.get("message", ""))
    if status == _OVERLOADED or error.get("type") == "rate_limit_error":
        return Overloaded(message)
    is_mistake = status < _SERVER_ERROR or error.get("type") == "invalid_request_error"
    return InvalidRequest(message) if is_mistake else InternalError(message)
