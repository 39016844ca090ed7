# SPDX-License-Identifier: Apache-2.0
"""Rows are computed in batches of like length, and nobody sees it."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard_deployments._huggingface_batches import plan_batches


@given(st.lists(st.integers(1, 50)), st.integers(1, 100), st.booleans())
def test_each_row_is_in_one_batch_that_fits(lengths: list[int], most: int, can_pad: bool) -> None:
    batches = plan_batches(lengths, most, can_pad)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or (can_pad and max(lengths[row] for row in batch) * len(batch) <= most)


def test_rows_of_like_length_share_a_batch() -> None:
    assert plan_batches([9, 1, 8, 2], 18) == [[1, 3], [2, 0]]


@pytest.mark.parametrize("most", [1, 24, 100_000])
def test_an_answer_does_not_depend_on_its_batch(most: int, load: Any, predict: Any) -> None:
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sits", "outside", "a", "man", "is", "playing", "guitar", "in", "new", "york"]
    texts = [" ".join(rng.choice(words, size)) for size in rng.integers(1, 40, 32)]
    model = load("text_classification", max_batch_tokens=most)
    together = predict(model, orjson.dumps({"instances": texts}), ("logits",))["logits"]
    alone = [predict(model, orjson.dumps({"instances": [text]}), ("logits",))["logits"][0] for text in texts]
    # FP32 sums in another order; padding that is not masked differs by thousands of times as much.
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-4)
    assert len({tuple(row) for row in together.round(3).tolist()}) > 20


def test_a_model_without_a_padding_token_is_asked_row_by_row(copied: Any, load: Any, predict: Any) -> None:
    folder = copied("text_classification")
    wanted = load("text_classification")
    document = orjson.loads((folder / "tokenizer_config.json").read_bytes())
    document["pad_token"] = None
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(document))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    model = load(folder)
    assert model._encoder.tokenizer.pad_token is None
    body = b'{"instances": ["Nice.", "The cat sits outside."]}'
    np.testing.assert_allclose(predict(model, body)["score"], predict(wanted, body)["score"], atol=1e-5)
