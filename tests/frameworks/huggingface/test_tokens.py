# SPDX-License-Identifier: Apache-2.0
"""Entities, masks and answers in texts."""

import json
from typing import Any

import pytest

from modelyard.errors import InvalidRequest

SENTENCE = b'{"instances": ["Ada Lovelace was born in London."]}'


def _read(answer: Any) -> Any:
    return [json.loads(one) for one in answer]


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_a_request_says_how_tokens_are_joined(strategy: str, load: Any, predict: Any) -> None:
    from transformers import TokenClassificationPipeline

    model = load("entities")
    encoder = model._encoder
    pipeline = TokenClassificationPipeline(model=encoder.loaded.model, tokenizer=encoder.tokenizer, device="cpu")
    text = "A man is playing guitar in New York, and nobody listens to him but the dog of his neighbour."
    wanted = pipeline(text, aggregation_strategy=strategy)
    body = json.dumps({"instances": [text]}).encode()
    (found,) = _read(predict(model, body, aggregation_strategy=strategy)["entities"])
    assert [one.pop("score") for one in found] == pytest.approx([one.pop("score") for one in wanted], abs=1e-5)
    assert found == wanted
    assert found


def test_an_unknown_way_of_joining_is_refused(load: Any, predict: Any) -> None:
    model = load("entities")
    with pytest.raises(InvalidRequest, match="expected one of none, simple, first, average, max"):
        predict(model, SENTENCE, aggregation_strategy="all")


def test_labels_that_are_ignored_are_an_option(load: Any, predict: Any) -> None:
    every = _read(predict(load("entities", ignore_labels=[]), SENTENCE)["entities"])[0]
    found = {one["entity"] for one in every}
    some = _read(predict(load("entities", ignore_labels=sorted(found)[:1]), SENTENCE)["entities"])[0]
    assert {one["entity"] for one in some} == found - set(sorted(found)[:1])


def test_tokens_have_scores_of_all_labels(load: Any, predict: Any) -> None:
    tokens = _read(predict(load("entities"), SENTENCE, ("tokens",))["tokens"])[0]
    assert "".join(one["word"] for one in tokens).lower() == "adalovelacewasborninlondon."
    assert set(tokens[0]["scores"]) == {"O", "B-PER", "I-PER", "B-LOC", "I-LOC"}
    assert sum(tokens[0]["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_a_text_without_a_mask_is_the_clients_mistake(load: Any, predict: Any) -> None:
    with pytest.raises(InvalidRequest, match=r'input "text"\[1\]: expected a mask, \[MASK\], got none'):
        predict(load("masks"), b'{"instances": ["a [MASK]", "Nice."]}')


def test_a_request_says_what_may_fill_a_mask(load: Any, predict: Any) -> None:
    model = load("masks", top_k=3)
    body = b'{"instances": ["The [MASK] sits outside."]}'
    assert len(_read(predict(model, body)["fillings"])[0]) == 3
    (only,) = _read(predict(model, body, top_k=1)["fillings"])[0]
    named = _read(predict(model, body, targets="cat, the")["fillings"])[0]
    assert {one["token_str"] for one in named} == {"cat", "the"}
    assert named[0]["score"] >= named[1]["score"]
    assert only["sequence"].endswith("sits outside.")
    with pytest.raises(InvalidRequest, match='"targets": zebra: no such token'):
        predict(model, body, targets="zebra")


def test_answers_are_in_the_context(load: Any, predict: Any) -> None:
    model = load("questions")
    context = "Paris is the capital of France, and Rome that of Italy."
    body = json.dumps({"instances": [{"question": "Where?", "context": context}]}).encode()
    answer = predict(model, body, ("answer", "start", "end", "score", "answers"))
    (listed,) = _read(answer["answers"])
    assert context[answer["start"][0] : answer["end"][0]] == answer["answer"][0] == listed[0]["answer"]
    assert len(listed) == 3
    assert [one["score"] for one in listed] == sorted((one["score"] for one in listed), reverse=True)
    assert len(_read(predict(model, body, ("answers",), top_k=5)["answers"])[0]) == 5


def test_a_long_context_is_read_in_parts(load: Any, predict: Any) -> None:
    context = "the cat sits outside and " * 40
    body = json.dumps({"instances": [{"question": "Where?", "context": context}]}).encode()
    answer = predict(load("questions"), body, ("answer", "start", "end", "answers"))
    assert context[answer["start"][0] : answer["end"][0]] == answer["answer"][0]
    # As long as one part only: without parts nothing but its beginning would be read.
    starts = [one["start"] for one in _read(predict(load("questions"), body, ("answers",), top_k=200)["answers"])[0]]
    assert max(starts) > 600
