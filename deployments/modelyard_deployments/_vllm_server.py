# SPDX-License-Identifier: Apache-2.0
"""``ray.serve.llm``'s server for a model that is a folder on this machine, in a replica that is not its own.

Fetches nothing: otherwise a further process on each node imports vLLM to find the files. Without a GPU the engine is
the replica's child: otherwise a placement group of its own reserves CPUs that the replica has already. And its one
worker is the engine's own process: otherwise there is one more, and each keeps a core busy waiting for the other.
"""

from __future__ import annotations

import os
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer


class LocalFiles(CallbackBase):
    """Fetches nothing before the engine starts."""

    async def on_before_node_init(self) -> None:
        """See the base class."""
        self.ctx.run_init_node = False


class OneProcessEngine(VLLMEngine):
    """An engine that is its own worker, where it has one."""

    def _start_async_llm_engine(
        self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any
    ) -> Any:  # there is no public way past the executor that ``LLMConfig`` decides
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        parallel = vllm_engine_config.parallel_config
        is_alone = parallel.world_size * parallel.data_parallel_size == 1
        if is_alone and vllm_engine_config.kv_transfer_config is None:  # transfers wait in threads of the worker
            parallel.distributed_executor_backend = UniProcExecutor
        return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)


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
    # Where threads are bound to cores, vLLM does that for a worker's process of its own.
    is_bound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND") != "nobind"
    engine = None if bundles or is_bound else OneProcessEngine
    return Server.sync_init(config, engine_cls=engine)  # type: ignore[return-value]  # it is made of the class
