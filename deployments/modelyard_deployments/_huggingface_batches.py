# SPDX-License-Identifier: Apache-2.0
"""Which rows are computed together: those of like length, and not more than fit."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], max_tokens: int, can_pad: bool = True) -> list[list[int]]:
    """Rows by batch, the short ones first.

    Args:
        lengths: Tokens of each row.
        max_tokens: Tokens of one batch, padding included; a row that is longer is a batch by itself.
        can_pad: Rows may be made as long as the longest of their batch; else each is a batch.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and can_pad and lengths[row] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
