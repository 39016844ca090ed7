# SPDX-License-Identifier: Apache-2.0
"""Rows join, take steps and leave in any order, and each keeps its own keys and values."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard_deployments._generation_cache import BatchCache, KeysValues, shared_prefix

LAYERS, HEADS, SIZE = 2, 2, 3


def made(values: list[float]) -> KeysValues:
    """Each token's keys are its value, its values the negative."""
    tokens = torch.tensor(values)[None, None, :, None].expand(1, HEADS, len(values), SIZE)
    return [(tokens + layer, -(tokens + layer)) for layer in range(LAYERS)]


def take_step(batch: BatchCache, rows: list[list[float]], values: list[float]) -> None:
    batch.make_room()
    mask = batch.mask("cpu")
    for layer in range(LAYERS):
        new = torch.tensor(values)[:, None, None, None].expand(-1, HEADS, 1, SIZE) + layer
        keys, negative = batch.cache.update(new, -new, layer)
        assert keys.shape[:3] == (len(values), HEADS, batch.width + 1)
        for row, before in enumerate(rows):
            seen = keys[row, 0, mask[row].bool(), 0].tolist()
            assert seen == [value + layer for value in [*before, values[row]]]
        assert torch.equal(negative, -keys)
    batch.advance()
    for row, value in zip(rows, values, strict=True):
        row.append(value)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, 40)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.sampled_from([1, 2, 70])),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(ACTIONS)
def test_each_row_keeps_its_own(actions: list[tuple[str, int]]) -> None:
    batch, rows, count = BatchCache(LAYERS, 100_000), list[list[float]](), 0.0
    for name, number in actions:
        if name == "join" and len(rows) < 6:
            rows.append([count + place for place in range(1, number + 1)])
            count += number
            batch.join(made(rows[-1]))
        elif name == "leave" and rows:
            index = number % len(rows)
            batch.leave(index)
            rows[index] = rows[-1]
            rows.pop()
        elif name == "step" and rows:
            for _ in range(number):
                take_step(batch, rows, [count + place for place in range(1, len(rows) + 1)])
                count += len(rows)
        assert batch.lengths == [len(row) for row in rows]
        assert batch.width == max(batch.lengths, default=0)


def test_the_room_is_that_of_the_longest() -> None:
    batch = BatchCache(LAYERS, 1000)
    assert batch.has_room([5000])
    batch.join(made([1.0] * 100))
    assert batch.has_room([100])
    assert not batch.has_room([500])
    assert not batch.has_room([100, 100, 100, 100])


def test_padding_is_no_number_of_earlier_rows() -> None:
    batch = BatchCache(LAYERS, 1000)
    batch.join(made([1.0] * 20))
    batch.join(made([float("nan")] * 20))
    batch.leave(1)
    batch.join(made([2.0]))
    batch.make_room()
    new = torch.zeros(2, HEADS, 1, SIZE)
    keys, _ = batch.cache.update(new, new, 0)
    assert torch.isfinite(keys).all()


def test_a_beginning_is_copied() -> None:
    batch = BatchCache(LAYERS, 1000)
    batch.join(made([1.0, 2.0, 3.0]))
    batch.join(made([4.0] * 5))
    keys, _ = batch.copy_beginning(0, 2)[0]
    assert keys[0, 0, :, 0].tolist() == [1.0, 2.0]


def test_shared_prefix() -> None:
    assert shared_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert shared_prefix([1, 2], [1, 2, 4]) == 2
    assert shared_prefix([], [1]) == 0
