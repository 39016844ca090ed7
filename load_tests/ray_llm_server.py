# SPDX-License-Identifier: Apache-2.0
"""Serves one model by ``ray.serve.llm``'s own OpenAI application until it is interrupted, for `load_tests.llm`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("source")
    parser.add_argument("engine", type=json.loads, help="engine arguments, JSON")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    # More CPUs than there are: its replicas reserve whole ones.
    ray.init(num_cpus=16, include_dashboard=False, runtime_env={"env_vars": dict(os.environ)}, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    config = LLMConfig(
        model_loading_config={"model_id": arguments.name, "model_source": arguments.source},
        engine_kwargs=arguments.engine,
        accelerator_config={"kind": "cpu"},
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
    )
    serve.run(build_openai_app({"llm_configs": [config]}))
    ended = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
