# SPDX-License-Identifier: Apache-2.0
"""A language model as an ordinary one: text in, text out, for ``generate`` and ``generate_stream`` of v2.

The names of the tensors are those of Triton's vLLM backend.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, Final

import numpy as np
import orjson

from modelyard.errors import InternalError, InvalidRequest
from modelyard.openai import EVENTS, OpenAIModel, OpenAIRequest, Part
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Parameters, Tensors

TEXT_SIGNATURE: Final = Signature(
    inputs=(TensorSpec("text_input", "BYTES", (1,)),),
    outputs=(TensorSpec("text_output", "BYTES", (1,)),),
    batch_axis=False,
    decoupled=True,
    example={"text_input": ["The capital of France is"]},
)
"""Of every language model; whatever else a client sends beside ``text_input`` is a sampling parameter."""

_STREAM: Final = "stream"
_SAMPLING: Final = "sampling_parameters"
"""JSON text with sampling parameters. Source: Triton's vLLM backend, "Sending your first inference"."""


async def generate_text(model: OpenAIModel, inputs: Tensors, parameters: Parameters) -> AsyncGenerator[Tensors]:
    """Completes a text: the whole of it in one answer, or with the parameter ``stream`` piece by piece.

    Args:
        model: What completes, over its route ``completions``.
        inputs: Of :data:`TEXT_SIGNATURE`.
        parameters: Those of OpenAI's completions.

    Raises:
        InvalidRequest: What the model does not take.
    """
    asked = _to_completion(inputs, parameters)
    answer = model.answer(OpenAIRequest("completions", orjson.dumps(asked)))
    try:
        async for part in answer:
            if part.status != 200:
                raise _to_error(part)
            for text in _texts(part):
                yield {"text_output": np.array([text.encode()], object)}
    finally:
        await answer.aclose()


def _to_completion(inputs: Tensors, parameters: Parameters) -> dict[str, Any]:
    asked: dict[str, Any] = dict(parameters)
    try:
        text = inputs["text_input"][0].decode()
        sampling = json.loads(asked.pop(_SAMPLING, "{}"))
    except UnicodeDecodeError:
        raise InvalidRequest('input "text_input": expected UTF-8') from None
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(f'parameter "{_SAMPLING}": expected a JSON object: {exc}') from None
    if not isinstance(sampling, dict):
        raise InvalidRequest(f'parameter "{_SAMPLING}": expected a JSON object')
    asked |= sampling
    asked[_STREAM] = bool(asked.get(_STREAM, False))
    return asked | {"prompt": text}


def _texts(part: Part) -> list[str]:
    """The texts in one reply, or in the events of one part of it; the last one's is empty and left out."""
    if part.content_type != EVENTS:
        return [choice["text"] for choice in orjson.loads(part.data)["choices"]]
    texts = []
    for event in part.data.split(b"\n\n"):
        data = event.removeprefix(b"data: ")
        if data and data != b"[DONE]" and not data.startswith(b":"):
            document = orjson.loads(data)
            if "error" in document:
                raise InternalError(str(document["error"].get("message", "")))
            texts += [choice["text"] for choice in document["choices"] if choice["text"]]
    return texts


def _to_error(part: Part) -> InvalidRequest | InternalError:
    try:
        message = str(orjson.loads(part.data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = part.data.decode(errors="replace")
    return InvalidRequest(message) if part.status < 500 else InternalError(message)
