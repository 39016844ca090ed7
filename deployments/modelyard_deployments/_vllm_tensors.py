# SPDX-License-Identifier: Apache-2.0
"""A model on vLLM as an ordinary one that predicts: embeddings, scores of pairs, and what is said in recordings."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import orjson

from modelyard.errors import InvalidRequest
from modelyard.openai import OpenAIRequest
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Tensors

Ask: TypeAlias = Callable[[OpenAIRequest], Awaitable[Any]]
"""Answers one call of the OpenAI protocol with the reply's document, and raises what is wrong with it."""


class Predictor(Protocol):
    """What a model predicts."""

    signature: Signature

    async def predict(self, inputs: Tensors) -> Tensors:
        """The outputs, a row for each row of the inputs.

        Raises:
            InvalidRequest: A row is nothing that the model can take.
        """


class Embeddings:
    """A vector for each text.

    Args:
        name: The model's.
        ask: Asks it.
        width: Numbers in a vector.
    """

    def __init__(self, name: str, ask: Ask, width: int) -> None:
        self._name = name
        self._ask = ask
        text = TensorSpec("text_input", "BYTES", (-1,))
        self.signature = Signature((text,), (TensorSpec("embedding", "FP32", (-1, width)),), any_input_name=True)

    async def predict(self, inputs: Tensors) -> Tensors:
        """See :class:`Predictor`."""
        return {"embedding": await embed(self._name, self._ask, _to_texts(inputs, "text_input"))}


class Scores:
    """How well two texts fit, for each pair.

    Args:
        name: The model's.
        ask: Asks it.
    """

    signature = Signature(
        (TensorSpec("text_1", "BYTES", (-1,)), TensorSpec("text_2", "BYTES", (-1,))),
        (TensorSpec("score", "FP32", (-1,)),),
    )

    def __init__(self, name: str, ask: Ask) -> None:
        self._name = name
        self._ask = ask

    async def predict(self, inputs: Tensors) -> Tensors:
        """See :class:`Predictor`."""
        pairs = {name: _to_texts(inputs, name) for name in ("text_1", "text_2")}
        document = await self._ask(OpenAIRequest("score", orjson.dumps({"model": self._name, **pairs})))
        scores = np.empty(len(pairs["text_1"]), np.float32)
        for one in document["data"]:
            scores[one["index"]] = one["score"]
        return {"score": scores}


class Transcripts:
    """What is said in each recording.

    Args:
        name: The model's.
        ask: Asks it.
    """

    signature = Signature(
        (TensorSpec("audio", "BYTES", (-1,), content_type="base64"),),
        (TensorSpec("text", "BYTES", (-1,)),),
        any_input_name=True,
    )

    def __init__(self, name: str, ask: Ask) -> None:
        self._name = name
        self._ask = ask

    async def predict(self, inputs: Tensors) -> Tensors:
        """See :class:`Predictor`."""
        try:
            async with asyncio.TaskGroup() as group:  # where one fails, nobody waits for the others any more
                tasks = [group.create_task(self._hear(one)) for one in inputs["audio"]]
        except ExceptionGroup as exc:
            raise exc.exceptions[0] from None
        texts = np.empty(len(tasks), object)
        texts[:] = [task.result() for task in tasks]
        return {"text": texts}

    async def _hear(self, recording: bytes) -> bytes:
        document = await self._ask(_to_form(self._name, recording))
        return str(document["text"]).strip().encode()


async def make_predictor(name: str, routes: tuple[str, ...], ask: Ask) -> Predictor | None:
    """What a model predicts that answers these routes; None where it generates text, or nothing that is known here.

    Args:
        name: The model's.
        routes: Of the OpenAI protocol.
        ask: Asks it.
    """
    if "completions" in routes:
        return None
    if "embeddings" in routes:
        return Embeddings(name, ask, (await embed(name, ask, ["a"])).shape[1])
    if "score" in routes:
        return Scores(name, ask)
    return Transcripts(name, ask) if "audio/transcriptions" in routes else None


async def embed(name: str, ask: Ask, texts: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """FP32 ``[texts, width]``."""
    document = await ask(OpenAIRequest("embeddings", orjson.dumps({"model": name, "input": texts})))
    return np.array([one["embedding"] for one in document["data"]], np.float32)


def _to_texts(inputs: Tensors, name: str) -> list[str]:
    try:
        return [text.decode() for text in inputs[name]]
    except UnicodeDecodeError:
        raise InvalidRequest(f'input "{name}": expected UTF-8') from None


def _to_form(name: str, recording: bytes) -> OpenAIRequest:
    boundary = uuid.uuid4().hex
    parts = [b'name="model"\r\n\r\n' + name.encode(), b'name="file"; filename="audio"\r\n\r\n' + recording]
    head = b"--%b\r\nContent-Disposition: form-data; " % boundary.encode()
    body = b"".join(head + part + b"\r\n" for part in parts) + b"--%b--\r\n" % boundary.encode()
    return OpenAIRequest("audio/transcriptions", body, f"multipart/form-data; boundary={boundary}")
