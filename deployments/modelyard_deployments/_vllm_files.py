# SPDX-License-Identifier: Apache-2.0
"""Hooks of ``ray.serve.llm``: the model is a folder on this machine already, and a CPU's engine is the replica's child.

Without them a further process on each node imports vLLM to find the files, and a placement group of its own reserves
CPUs that the replica has already.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase


class LocalFiles(CallbackBase):
    """Fetches nothing before the engine starts."""

    async def on_before_node_init(self) -> None:
        """See the base class."""
        self.ctx.run_init_node = False


def alone(config: Any) -> None:
    """Makes an ``LLMConfig`` start its engine without a placement group."""
    config._callback_instance = LocalFiles(llm_config=config)  # it has no other way in
