# SPDX-License-Identifier: Apache-2.0
"""The key-value cache of a batch that sequences join and leave.

All sequences end in the same column, so that one step appends one column for everybody and what transformers does for
left-padded batches (masks, sliding windows, relative positions) holds as it is::

    columns    start                    end      capacity
    row 0      · · · a a a a a a a a a a |  free
    row 1      · · · · · · · · b b b b b |  free
    row 2      c c c c c c c c c c c c c |  free

A row that joins is copied to where it ends with the others; one that leaves is overwritten by the last. Where the
columns are used up, the buffers are made anew, as wide as the longest row and some more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

KeysValues: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
"""One sequence's keys and values by layer, each ``[1, heads, tokens, size]``."""

SPARE_COLUMNS: Final = 128
"""Columns for steps to come; copying the cache once in so many steps costs little beside reading it in each."""
_SPARE_ROWS: Final = 4


@dataclass(slots=True)
class Window:
    """Which part of the buffers is in use."""

    rows: int = 0
    start: int = 0
    end: int = 0

    @property
    def width(self) -> int:
        """Columns in use: the tokens of the longest row."""
        return self.end - self.start


class _WindowLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers' types are incomplete, and not read
    """One layer's keys and values, ``[rows, heads, columns, size]``."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Never needed: the buffers are made when a row joins."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends one column; returns views on all columns in use."""
        window = self._window
        rows, columns = slice(0, window.rows), slice(window.start, window.end + 1)
        self.keys[rows, :, window.end] = key_states[:, :, 0]
        self.values[rows, :, window.end] = value_states[:, :, 0]
        return self.keys[rows, :, columns], self.values[rows, :, columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the mask covers, and the first."""
        return self._window.width + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self._window.width

    def get_max_length(self) -> int:
        """There is none."""
        return -1

    def move(self, rows: int, columns: int, width: int) -> None:
        """Makes buffers of this size, and copies what is in use so that it ends in column ``width``."""
        window = self._window
        self.keys = self._moved(self.keys, rows, columns, width, window)
        self.values = self._moved(self.values, rows, columns, width, window)

    @staticmethod
    def _moved(old: torch.Tensor, rows: int, columns: int, width: int, window: Window) -> torch.Tensor:
        # Zeros, as padding is masked by weights of 0, and 0 times what happens to lie in memory may be NaN.
        new = old.new_zeros((rows, old.shape[1], columns, old.shape[3]))
        new[: window.rows, :, width - window.width : width] = old[: window.rows, :, window.start : window.end]
        return new


class BatchCache:
    """The cache of all running rows.

    Attributes:
        cache: What the model is given.
        lengths: Tokens of each row.

    Args:
        layers: How many layers have keys and values.
        places: Most places for a token, in all rows together.
    """

    def __init__(self, layers: int, places: int) -> None:
        self._window = Window()
        self._layers = [_WindowLayer(self._window) for _ in range(layers)]
        self._places = places
        self._size = (0, 0)
        self.cache = Cache(layers=self._layers)
        self.lengths: list[int] = []

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return self._window.width

    def has_room(self, lengths: Sequence[int]) -> bool:
        """Whether rows of so many tokens can join and take a step; one that is alone always can."""
        rows, width = len(self.lengths) + len(lengths), max(self.width, *lengths)
        return rows == 1 or rows * (width + SPARE_COLUMNS) <= self._places

    def has_room_to_step(self) -> bool:
        """Whether each row can take one more token; one that is alone always can."""
        rows = len(self.lengths)
        return rows <= 1 or self._window.end < self._size[1] or rows * (self.width + SPARE_COLUMNS) <= self._places

    def join(self, row: KeysValues) -> None:
        """Adds a row behind the others. Copies."""
        length = row[0][0].shape[2]
        count, window = len(self.lengths), self._window
        if not self._size[0]:
            for layer, (keys, values) in zip(self._layers, row, strict=True):
                layer.keys, layer.values = (
                    keys.new_empty((0, *keys.shape[1:])),
                    values.new_empty((0, *values.shape[1:])),
                )
                layer.is_initialized = True
        if count == self._size[0] or length > window.end:
            self._resize(count + 1, max(window.width, length))
        window.start = min(window.start, window.end - length)
        window.rows = count + 1
        self.lengths.append(length)
        for layer, (keys, values) in zip(self._layers, row, strict=True):
            self._write(layer.keys, count, keys)
            self._write(layer.values, count, values)

    def leave(self, index: int) -> None:
        """Removes a row; the last one takes its place."""
        last, window = len(self.lengths) - 1, self._window
        if index < last:
            columns = slice(window.start, window.end)
            for layer in self._layers:
                layer.keys[index, :, columns] = layer.keys[last, :, columns]
                layer.values[index, :, columns] = layer.values[last, :, columns]
        self.lengths[index] = self.lengths[last]
        self.lengths.pop()
        window.rows = last
        window.start = window.end - max(self.lengths, default=0)
        if not last:
            self.clear()

    def clear(self) -> None:
        """Removes all rows and frees the memory."""
        self.lengths.clear()
        self._window.rows = self._window.start = self._window.end = 0
        self._size = (0, 0)
        for layer in self._layers:
            if layer.is_initialized:
                layer.keys = layer.values = layer.keys.new_empty(0)

    def make_room(self) -> None:
        """Call before each step: there is a free column afterwards."""
        if self._window.end >= self._size[1]:
            self._resize(len(self.lengths), self.width)

    def advance(self) -> None:
        """Call after each step: every row has one more token."""
        self._window.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def mask(self, device: Any) -> torch.Tensor:
        """The mask ``[rows, columns]`` of the next step: 1 where a row has a token, the new one counted."""
        columns = torch.arange(self.width + 1, device=device)
        first = self.width - torch.tensor(self.lengths, device=device)
        return (columns[None] >= first[:, None]).long()

    def positions(self, device: Any) -> torch.Tensor:
        """The places ``[rows, 1]`` of the new tokens in their sequences."""
        return torch.tensor(self.lengths, device=device)[:, None]

    def copy_beginning(self, index: int, length: int) -> KeysValues:
        """A copy of the first tokens of a row."""
        first = self._window.end - self.lengths[index]
        row, columns = slice(index, index + 1), slice(first, first + length)
        return [(layer.keys[row, :, columns].clone(), layer.values[row, :, columns].clone()) for layer in self._layers]

    def _resize(self, rows: int, width: int) -> None:
        spared = -(-rows // _SPARE_ROWS) * _SPARE_ROWS
        rows = spared if spared * (width + SPARE_COLUMNS) <= self._places else rows
        for layer in self._layers:
            layer.move(rows, width + SPARE_COLUMNS, width)
        used, self._size = self._window.width, (rows, width + SPARE_COLUMNS)
        self._window.start, self._window.end = width - used, width

    def _write(self, buffer: torch.Tensor, row: int, tokens: torch.Tensor) -> None:
        end = self._window.end
        buffer[row].zero_()  # an earlier row's, which may hold NaN
        buffer[row, :, end - tokens.shape[2] : end] = tokens[0]


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the beginning."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
