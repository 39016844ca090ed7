# SPDX-License-Identifier: Apache-2.0
"""One row of logits becomes a token as the request asks."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from modelyard.errors import InvalidRequest
from modelyard_deployments._generation_sampling import Sampler, Sampling

LOGITS = [2.0, 1.0, 0.0, -1.0, 3.0]
BY_RANK = [4, 0, 1, 2, 3]
ENDS = frozenset({4})


def sampler(prompt: tuple[int, ...] = (0,), **members: Any) -> Sampler:
    return Sampler(Sampling(**{"max_tokens": 100, **members}), prompt, ENDS, "cpu")


def draw(count: int = 400, **members: Any) -> Counter[int]:
    one = sampler(**{"seed": 1, **members})
    return Counter(one.choose(torch.tensor(LOGITS)).token for _ in range(count))


def test_temperature_of_zero_takes_the_likeliest() -> None:
    assert draw(5, temperature=0) == {4: 5}


def test_drawn_as_often_as_they_are_likely() -> None:
    counts = draw(4000)
    expected = torch.softmax(torch.tensor(LOGITS), -1)
    for token in range(5):
        assert counts[token] / 4000 == pytest.approx(float(expected[token]), abs=0.03)


def test_a_high_temperature_evens_them_out() -> None:
    assert min(draw(4000, temperature=2.0).values()) > min(draw(4000, temperature=0.7).values())


@pytest.mark.parametrize(
    ("members", "left"),
    [
        ({"top_k": 2}, 2),
        ({"top_k": -1}, 5),
        ({"top_p": 0.5}, 1),
        ({"top_p": 0.7}, 2),
        ({"top_p": 1e-9}, 1),
        ({"min_p": 0.3}, 2),
        ({"top_k": 3, "top_p": 0.95}, 3),
        ({"top_k": 4, "min_p": 0.1}, 3),
    ],
)
def test_only_the_likeliest(members: dict[str, Any], left: int) -> None:
    assert sorted(draw(2000, **members)) == sorted(BY_RANK[:left])


def test_top_p_of_a_large_vocabulary_needs_no_sorting() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40_000) * 4
    order = logits.argsort(descending=True)
    probabilities = torch.softmax(logits, -1)[order]
    kept = set(order[: int((probabilities.cumsum(-1) - probabilities < 0.8).sum())].tolist())
    one = sampler(top_p=0.8, seed=1)
    assert {one.choose(logits.clone()).token for _ in range(200)} <= kept
    flat = sampler(top_p=0.8, seed=1)
    assert len({flat.choose(torch.zeros(40_000)).token for _ in range(50)}) > 40


def test_equal_seeds_draw_equally() -> None:
    answers = [[sampler(seed=seed).choose(torch.zeros(1000)).token for _ in range(3)] for seed in (7, 7, -7)]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("members", "second"),
    [
        ({"presence_penalty": 2.0}, 0),
        ({"frequency_penalty": 2.0}, 0),
        ({"repetition_penalty": 2.0}, 0),
        ({}, 4),
    ],
)
def test_penalties_are_for_what_was_said(members: dict[str, Any], second: int) -> None:
    one = sampler(prompt=(3,), temperature=0, **members)
    assert [one.choose(torch.tensor(LOGITS)).token for _ in range(2)] == [4, second]


def test_repetition_counts_the_prompt_and_presence_does_not() -> None:
    assert sampler(prompt=(4,), temperature=0, repetition_penalty=4.0).choose(torch.tensor(LOGITS)).token == 0
    assert sampler(prompt=(4,), temperature=0, presence_penalty=2.0).choose(torch.tensor(LOGITS)).token == 4


@pytest.mark.parametrize(
    ("members", "token"),
    [
        ({"logit_bias": {3: 100.0}}, 3),
        ({"logit_bias": {4: -100.0}}, 0),
        ({"allowed_token_ids": (2, 3)}, 2),
        ({"bad_words": ((4,),)}, 0),
        ({"min_tokens": 1}, 0),
        ({"ignore_eos": True}, 0),
    ],
)
def test_what_is_forbidden_or_favoured(members: dict[str, Any], token: int) -> None:
    assert sampler(temperature=0, **members).choose(torch.tensor(LOGITS)).token == token


def test_a_bad_word_is_forbidden_where_it_would_be_complete() -> None:
    one = sampler(temperature=0, bad_words=((4, 4),))
    assert [one.choose(torch.tensor(LOGITS)).token for _ in range(3)] == [4, 0, 4]


def test_nothing_left_is_the_clients_mistake() -> None:
    with pytest.raises(InvalidRequest, match="leaves none"):
        sampler(allowed_token_ids=(4,), min_tokens=3).choose(torch.tensor(LOGITS))


def test_logprobs_are_the_models_own() -> None:
    chosen = sampler(temperature=0, logit_bias={3: 100.0}, logprobs=2).choose(torch.tensor(LOGITS))
    expected = torch.log_softmax(torch.tensor(LOGITS), -1)
    assert (chosen.token, chosen.rank) == (3, 5)
    assert chosen.logprob == pytest.approx(float(expected[3]))
    assert [token for token, _ in chosen.top] == [4, 0]
    assert math.exp(chosen.top[0][1]) == pytest.approx(float(expected[4].exp()))
