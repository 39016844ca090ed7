# SPDX-License-Identifier: Apache-2.0
"""Embedding models and cross-encoders in the OpenAI protocol; replies are read by OpenAI's own types."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse

from modelyard.openai import OpenAIRequest

TEXTS = ["The cat sits outside.", "A man is playing guitar in New York.", "Nice."]


async def ask(model: Any, route: str, **body: Any) -> tuple[int, Any]:
    """The status and the document of the only part."""
    request = OpenAIRequest(route, json.dumps({"model": "m", **body}).encode(), id="one")
    (part,) = [part async for part in model.answer(request)]
    return part.status, json.loads(part.data)


async def vectors(model: Any, **body: Any) -> Any:
    status, document = await ask(model, "embeddings", **body)
    assert status == 200, document
    reply = CreateEmbeddingResponse.model_validate(document)
    assert [one.index for one in reply.data] == list(range(len(reply.data)))
    return np.float32([one.embedding for one in reply.data])


async def refusal(model: Any, route: str, **body: Any) -> Any:
    status, document = await ask(model, route, **body)
    assert status == 400
    assert document["error"]["type"] == "invalid_request_error"
    return document["error"]


@pytest.fixture
def theirs(saved: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(saved("minilm")), device="cpu")


async def test_embeddings_are_sentence_transformers(load: Any, theirs: Any) -> None:
    model = load("minilm")
    np.testing.assert_allclose(await vectors(model, input=TEXTS), theirs.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(await vectors(model, input=TEXTS[0]), theirs.encode(TEXTS[:1]), atol=1e-5)


async def test_base64_is_the_same_numbers(load: Any) -> None:
    model = load("minilm")
    _, document = await ask(model, "embeddings", input=TEXTS, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in document["data"]]
    np.testing.assert_array_equal(decoded, await vectors(model, input=TEXTS))


async def test_tokens_are_taken_as_they_are(load: Any) -> None:
    model = load("minilm")
    tokens = [(await ask(model, "tokenize", prompt=text))[1]["tokens"] for text in TEXTS]
    wanted = await vectors(model, input=TEXTS)
    np.testing.assert_allclose(await vectors(model, input=tokens), wanted, atol=1e-5)
    np.testing.assert_allclose(await vectors(model, input=tokens[1]), wanted[1:2], atol=1e-5)


async def test_usage_counts_tokens(load: Any) -> None:
    model = load("minilm")
    _, document = await ask(model, "embeddings", input=TEXTS)
    counts = [(await ask(model, "tokenize", prompt=text))[1]["count"] for text in TEXTS]
    assert document["usage"] == {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}


async def test_calls_at_once_are_computed_together(load: Any, theirs: Any) -> None:
    model = load("minilm")
    answers = await asyncio.gather(*(vectors(model, input=text) for text in TEXTS * 20))
    np.testing.assert_allclose(np.concatenate(answers), np.tile(theirs.encode(TEXTS), (20, 1)), atol=1e-5)


async def test_a_call_that_nobody_waits_for_does_not_stop_the_others(load: Any) -> None:
    model = load("minilm")
    calls = [asyncio.ensure_future(vectors(model, input=text)) for text in TEXTS * 10]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in answers[::2])
    assert all(isinstance(one, np.ndarray) for one in answers[1::2])


async def test_dimensions_are_refused_unless_embeddings_can_be_cut(load: Any, theirs: Any) -> None:
    error = await refusal(load("minilm"), "embeddings", input="a", dimensions=64)
    assert error["param"] == "dimensions"
    assert (await vectors(load("minilm"), input="a", dimensions=384)).shape == (1, 384)
    short = await vectors(load("minilm", matryoshka=True), input=TEXTS, dimensions=64)
    wanted = theirs.encode(TEXTS)[:, :64]
    np.testing.assert_allclose(short, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


async def test_only_the_dimensions_of_the_config_are_taken(copied: Any, load: Any) -> None:
    folder = copied("minilm")
    document = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(document | {"matryoshka_dimensions": [32, 64]}))
    model = load(folder)
    assert (await vectors(model, input="a", dimensions=64)).shape == (1, 64)
    assert "expected 32, 64, got 65" in (await refusal(model, "embeddings", input="a", dimensions=65))["message"]


async def test_long_inputs_are_refused_unless_they_are_to_be_cut(load: Any, theirs: Any) -> None:
    model, text = load("minilm"), "word " * 600
    for given in (text, [2054] * 300):
        error = await refusal(model, "embeddings", input=given)
        assert "input[0]: expected at most 256 tokens" in error["message"]
        assert "please reduce the length" in error["message"]
    cut = await vectors(model, input=text, truncate_prompt_tokens=-1)
    np.testing.assert_allclose(cut, theirs.encode([text]), atol=1e-5)
    _, document = await ask(model, "embeddings", input=text, truncate_prompt_tokens=8)
    assert document["usage"]["total_tokens"] == 8


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [-1]}, "input[0]"),
        ({"input": [99999999]}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": "64"}, "dimensions"),
        ({"input": "a", "truncate_prompt_tokens": 1000}, "truncate_prompt_tokens"),
        ({"input": "a", "temperature": 1}, "temperature"),
        ({}, "input"),
    ],
)
async def test_mistakes_are_openais_400(body: dict[str, Any], param: str, load: Any) -> None:
    assert (await refusal(load("minilm"), "embeddings", **body))["param"].startswith(param.split("[")[0])


async def test_documents_are_ranked_by_cosine(load: Any, theirs: Any) -> None:
    documents = [TEXTS[0], {"text": TEXTS[1]}, "Somebody plays music."]
    _, document = await ask(load("minilm"), "rerank", query="Who plays music?", documents=documents, top_n=2)
    texts = [TEXTS[0], TEXTS[1], "Somebody plays music."]
    scores = theirs.encode(texts) @ theirs.encode(["Who plays music?"])[0]
    order = np.argsort(-scores)[:2]
    assert [one["index"] for one in document["results"]] == order.tolist()
    np.testing.assert_allclose([one["relevance_score"] for one in document["results"]], scores[order], atol=1e-5)
    assert document["results"][0]["document"] == {"text": texts[order[0]]}
    assert document["id"] == "rerank-one"


async def test_documents_are_left_out_where_they_are_not_wanted(load: Any) -> None:
    _, document = await ask(load("minilm"), "rerank", query="a", documents=["b"], return_documents=False)
    assert list(document["results"][0]) == ["index", "relevance_score"]


async def test_texts_are_scored_one_by_one_or_against_one(load: Any, theirs: Any) -> None:
    model, vectors_of = load("minilm"), theirs.encode(TEXTS)
    _, one = await ask(model, "score", text_1=TEXTS[0], text_2=TEXTS)
    np.testing.assert_allclose([each["score"] for each in one["data"]], vectors_of @ vectors_of[0], atol=1e-5)
    _, each = await ask(model, "score", queries=TEXTS, documents=TEXTS[::-1])
    wanted = (vectors_of * vectors_of[::-1]).sum(axis=1)
    np.testing.assert_allclose([one["score"] for one in each["data"]], wanted, atol=1e-5)
    assert (await refusal(model, "score", text_1=TEXTS, text_2=TEXTS[:2]))["param"] == "text_2"


async def test_tokens_go_there_and_back(load: Any) -> None:
    model = load("minilm")
    _, told = await ask(model, "tokenize", prompt="the cat", return_token_strs=True)
    assert told == {
        "count": 4,
        "max_model_len": 256,
        "tokens": told["tokens"],
        "token_strs": ["[CLS]", "the", "cat", "[SEP]"],
    }
    _, bare = await ask(model, "tokenize", prompt="the cat", add_special_tokens=False)
    assert (await ask(model, "detokenize", tokens=bare["tokens"]))[1] == {"prompt": "the cat"}
    assert (await refusal(model, "detokenize", tokens=[10**8]))["param"] == "tokens"


async def test_prompts_of_queries_and_documents_are_used(saved: Any, load: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    modules = [Transformer(str(saved("embeddings_of_a_bare_model"))), Pooling(32)]
    theirs = SentenceTransformer(modules=modules, prompts={"query": "the man: ", "document": "a cat: "}, device="cpu")
    theirs.save(str(tmp_path))
    model = load(tmp_path)
    _, document = await ask(model, "rerank", query="nice", documents=TEXTS)
    wanted = theirs.similarity(theirs.encode_query("nice"), theirs.encode_document(TEXTS))[0].numpy()
    found = {one["index"]: one["relevance_score"] for one in document["results"]}
    np.testing.assert_allclose([found[index] for index in range(3)], wanted, atol=1e-5)
    asked = await vectors(model, input=TEXTS, prompt_name="query")
    np.testing.assert_allclose(asked, theirs.encode(TEXTS, prompt_name="query"), atol=1e-5)


@pytest.mark.parametrize("activation", ["Identity", "Sigmoid"])
async def test_a_cross_encoder_ranks_as_sentence_transformers_does(activation: str, copied: Any, load: Any) -> None:
    from sentence_transformers import CrossEncoder

    folder = copied("cross_encoder")
    document = json.loads((folder / "config.json").read_bytes())
    kinds = {"Identity": "torch.nn.modules.linear.Identity", "Sigmoid": "torch.nn.modules.activation.Sigmoid"}
    document["sentence_transformers"] = {"activation_fn": kinds[activation], "version": "5.0"}
    (folder / "config.json").write_text(json.dumps(document))
    ranked = CrossEncoder(str(folder), device="cpu").rank("A cat", TEXTS)
    model = load(folder)
    _, reply = await ask(model, "rerank", query="A cat", documents=TEXTS)
    assert [one["index"] for one in reply["results"]] == [one["corpus_id"] for one in ranked]
    found = [one["relevance_score"] for one in reply["results"]]
    np.testing.assert_allclose(found, [one["score"] for one in ranked], atol=1e-5)
    _, reply = await ask(model, "score", text_1="A cat", text_2=TEXTS)
    assert sorted((one["score"] for one in reply["data"]), reverse=True) == pytest.approx(found)


async def test_a_folder_that_sentence_transformers_saved_is_a_cross_encoder(
    saved: Any, load: Any, tmp_path: Path
) -> None:
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(saved("cross_encoder")), device="cpu")
    theirs.save_pretrained(str(tmp_path))
    model = load(tmp_path)
    assert model.openai_routes == ("rerank", "score", "tokenize", "detokenize")
    _, reply = await ask(model, "score", text_1="A cat", text_2=TEXTS)
    wanted = theirs.predict([("A cat", text) for text in TEXTS])
    np.testing.assert_allclose([one["score"] for one in reply["data"]], wanted, atol=1e-5)
