# SPDX-License-Identifier: Apache-2.0
"""``ray.serve.llm``'s server for a model that is a folder on this machine, in a replica that is not its own.

Fetches nothing: otherwise a further process on each node imports vLLM to find the files. Without a GPU the engine is
the replica's child: otherwise a placement group of its own reserves CPUs that the replica has already.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer


class LocalFiles(CallbackBase):
    """Fetches nothing before the engine starts."""

    async def on_before_node_init(self) -> None:
        """See the base class."""
        self.ctx.run_init_node = False


class Server(LLMServer):
    """Ends when it is told to, not when it is collected: that would be a coroutine which nobody awaits."""

    def __del__(self) -> None:  # type: ignore[override]  # Serve alone calls the other one
        """Does nothing."""


def make_server(name: str, source: str, arguments: dict[str, Any], bundles: list[dict[str, float]]) -> LLMServer:
    """The server, not started.

    Args:
        name: The model's, in requests and answers.
        source: Its folder.
        arguments: vLLM's engine arguments.
        bundles: Of the replica's placement group, one for each worker; empty without a GPU.

    Raises:
        ValueError: An argument is not what it has to be.
    """
    config = LLMConfig(
        model_loading_config={"model_id": name, "model_source": source},
        engine_kwargs=arguments,
        accelerator_config=None if bundles else {"kind": "cpu"},
        placement_group_config={"bundles": bundles} if bundles else None,
        callback_config={"callback_class": LocalFiles},
        log_engine_metrics=True,
    )
    if not bundles:
        config._callback_instance = LocalFiles(llm_config=config)  # there is no public way
    return Server.sync_init(config)  # type: ignore[return-value]  # it is made of the class
