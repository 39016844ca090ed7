# SPDX-License-Identifier: Apache-2.0
"""Classes of texts, through v1 and the extension of Triton, and classes that the request brings."""

import json
from typing import Any

import numpy as np
import pytest

from modelyard.classes import to_top_classes
from modelyard.errors import InvalidRequest, ModelLoadError

TEXTS = b'{"instances": ["The cat sits outside.", "Nice."]}'


@pytest.mark.parametrize(
    "body",
    [
        TEXTS,
        b'{"instances": [{"text": "The cat sits outside."}, {"text": "Nice."}]}',
        b'{"instances": [{"sentence": "The cat sits outside."}, {"sentence": "Nice."}]}',
        b'{"inputs": {"text": ["The cat sits outside.", "Nice."]}}',
        b'{"inputs": ["The cat sits outside.", "Nice."]}',
    ],
)
def test_rows_are_strings_or_records(body: bytes, load: Any, predict: Any) -> None:
    model = load("text_classification")
    answer = predict(model, body)
    assert answer["label"].tolist() == predict(model, TEXTS)["label"].tolist()
    assert answer["score"].dtype == np.float32


def test_probabilities_have_the_names_of_classes(load: Any, predict: Any) -> None:
    model = load("text_classification")
    assert model.signature.labels["predict_proba"] == ("bad", "good", "fair")
    answer = predict(model, TEXTS, ("predict", "predict_proba"))
    top = to_top_classes(answer["predict_proba"], 1, model.signature.labels["predict_proba"], True)
    assert [one.decode().split(":")[2] for one in top[:, 0]] == answer["predict"].tolist()


def test_a_request_says_how_many_classes_it_wants(load: Any, predict: Any) -> None:
    model = load("text_classification", top_k=2)
    assert predict(model, TEXTS)["label"].shape == (2, 2)
    assert predict(model, TEXTS, top_k=1)["label"].shape == (2, 1)
    assert predict(model, TEXTS, top_k=99)["score"].shape == (2, 3)
    with pytest.raises(InvalidRequest, match='parameter "top_k": expected an integer, got'):
        predict(model, TEXTS, top_k="2")


def test_several_classes_need_the_option(load: Any, predict: Any) -> None:
    with pytest.raises(InvalidRequest, match="set its option top_k"):
        predict(load("text_classification"), TEXTS, top_k=2)


def test_scores_are_logits_where_no_function_is_wanted(load: Any, predict: Any) -> None:
    model = load("text_classification", function_to_apply="none")
    answer = predict(model, TEXTS, ("score", "logits"))
    np.testing.assert_array_equal(answer["score"], answer["logits"].max(axis=1))
    assert "predict_proba" not in {spec.name for spec in model.signature.on_request}


def test_long_texts_are_cut_or_refused(load: Any, predict: Any) -> None:
    body = json.dumps({"instances": ["Nice.", "cat " * 80]}).encode()
    assert predict(load("text_classification"), body)["label"].shape == (2,)
    with pytest.raises(InvalidRequest, match=r'input "text"\[1\]: expected at most 64 tokens, got 82'):
        predict(load("text_classification", truncation=False), body)


def test_classes_of_a_request_may_be_its_parameter(load: Any, predict: Any) -> None:
    model = load("zero_shot", task="zero-shot-classification")
    rows = b'{"instances": [{"text": "Nice.", "candidate_labels": ["cats", "towns"]}]}'
    answer = predict(model, b'{"instances": ["Nice."]}', candidate_labels="cats, towns")
    assert answer["labels"].tolist() == predict(model, rows)["labels"].tolist()
    with pytest.raises(InvalidRequest, match='"candidate_labels" is missing'):
        predict(model, b'{"instances": ["Nice."]}')


def test_options_are_what_a_request_leaves_open(load: Any, predict: Any) -> None:
    pipeline = _pipeline(load("zero_shot", task="zero-shot-classification"))
    wanted = pipeline("Nice.", ["cats", "towns"], hypothesis_template="On {}.", multi_label=True)
    options = {"candidate_labels": ["cats", "towns"], "hypothesis_template": "On {}.", "multi_label": True}
    answer = predict(load("zero_shot", task="zero-shot-classification", **options), b'{"instances": ["Nice."]}')
    assert answer["labels"][0].tolist() == wanted["labels"]
    np.testing.assert_allclose(answer["scores"][0], wanted["scores"], atol=1e-5)


def _pipeline(model: Any) -> Any:
    from transformers import ZeroShotClassificationPipeline

    encoder = model._encoder
    return ZeroShotClassificationPipeline(model=encoder.loaded.model, tokenizer=encoder.tokenizer, device="cpu")


def test_a_template_needs_a_place_for_the_class(load: Any, predict: Any) -> None:
    model = load("zero_shot", task="zero-shot-classification", candidate_labels=["a"])
    with pytest.raises(InvalidRequest, match="hypothesis_template"):
        predict(model, b'{"instances": ["Nice."]}', hypothesis_template="none")


def test_zero_shot_needs_a_model_that_knows_entailment(load: Any) -> None:
    with pytest.raises(ModelLoadError, match='expected a model with a label "entailment", got the labels bad, good'):
        load("text_classification", task="zero-shot-classification")
