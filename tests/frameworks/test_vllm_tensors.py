# SPDX-License-Identifier: Apache-2.0
"""What a model on vLLM says of itself in v1 and v2 is what it does: it embeds, compares, hears or generates."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import orjson
import pytest

from modelyard.errors import InvalidRequest
from modelyard.openai import OpenAIRequest
from modelyard.tensor import Tensors, to_bytes_array
from modelyard_deployments._openai_multipart import decode_form
from modelyard_deployments._vllm_tensors import Predictor, make_predictor


async def ask(request: OpenAIRequest) -> Any:
    """As vLLM's server answers; numbers are lengths."""
    if request.route == "audio/transcriptions":
        form = decode_form(request)
        return {"text": f" {form.get('model')} hears {form.files['file'].decode()}"}
    body = orjson.loads(request.body)
    assert body["model"] == "m"
    if request.route == "embeddings":
        return {"data": [{"embedding": [len(text), 0.5]} for text in body["input"]]}
    pairs = enumerate(zip(body["text_1"], body["text_2"], strict=True))
    return {"data": [{"index": index, "score": len(a) - len(b)} for index, (a, b) in reversed(list(pairs))]}


async def make(*routes: str) -> Predictor:
    predictor = await make_predictor("m", (*routes, "tokenize"), ask)
    assert predictor is not None
    return predictor


def texts(**inputs: list[str]) -> Tensors:
    return {name: to_bytes_array(np.array(value, object)) for name, value in inputs.items()}


def names(predictor: Predictor) -> tuple[list[str], list[str]]:
    signature = predictor.signature
    return [one.name for one in signature.inputs], [one.name for one in signature.outputs]


async def test_what_embeds_gives_vectors() -> None:
    predictor = await make("embeddings", "score", "rerank")
    assert names(predictor) == (["text_input"], ["embedding"])
    assert predictor.signature.outputs[0].shape == (-1, 2)
    assert (await predictor.predict(texts(text_input=["a", "abc"])))["embedding"].tolist() == [[1, 0.5], [3, 0.5]]


async def test_what_compares_gives_scores() -> None:
    predictor = await make("score", "rerank")
    assert names(predictor) == (["text_1", "text_2"], ["score"])
    scores = (await predictor.predict(texts(text_1=["a", "abc"], text_2=["ab", "b"])))["score"]
    assert (scores.dtype, scores.tolist()) == (np.float32, [-1, 2])


async def test_what_hears_gives_texts() -> None:
    predictor = await make("audio/transcriptions", "audio/translations")
    assert names(predictor) == (["audio"], ["text"])
    heard = (await predictor.predict(texts(audio=["RIFF\r\n--", "x"])))["text"]
    assert heard.tolist() == [b"m hears RIFF\r\n--", b"m hears x"]


async def test_where_one_recording_is_none_the_others_are_not_heard_to_the_end() -> None:
    given_up = []

    async def hear(request: OpenAIRequest) -> Any:
        if decode_form(request).files["file"] == b"x":
            raise InvalidRequest("no recording")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.append(request)
            raise

    predictor = await make_predictor("m", ("audio/transcriptions",), hear)
    assert predictor is not None
    with pytest.raises(InvalidRequest, match="no recording"):
        await predictor.predict(texts(audio=["a", "x", "b"]))
    assert len(given_up) == 2


async def test_what_generates_or_does_none_of_it_predicts_nothing() -> None:
    for routes in (("completions", "chat/completions"), ("completions", "audio/transcriptions"), ("tokenize",)):
        assert await make_predictor("m", routes, ask) is None


async def test_a_text_that_is_no_utf8_is_the_clients_mistake() -> None:
    inputs = {"text_input": np.array([b"\xff"], object)}
    with pytest.raises(InvalidRequest, match="expected UTF-8"):
        await (await make("embeddings")).predict(inputs)
