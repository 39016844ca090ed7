# SPDX-License-Identifier: Apache-2.0
"""A scikit-learn model on KServe's Python server: the process that `peers` starts in KServe's own environment.

Run as `python -P load_tests/kserve_runner.py --http_port … --grpc_port … NAME=ARTIFACT …`; needs kserve and joblib.
KServe listens on every interface and has no option for it; here both listeners are turned to loopback before it starts.
Source: kserve/protocol/rest/server.py (`uvicorn.Config(host="0.0.0.0")`), kserve/protocol/grpc/server.py (`[::]:port`).
"""

import sys
from types import SimpleNamespace
from typing import Any

import grpc
import joblib
import kserve.protocol.grpc.server as grpc_server
import kserve.protocol.rest.server as rest_server
import uvicorn
from kserve import InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import get_predict_input, get_predict_response

LOOPBACK = "127.0.0.1"


class SklearnModel(Model):  # type: ignore[misc]
    """What KServe's own sklearnserver does for one request."""

    def __init__(self, name: str, artifact: str) -> None:
        super().__init__(name)
        self._model = joblib.load(artifact)
        self.ready = True

    def predict(
        self, payload: dict[str, Any] | InferRequest, headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferResponse:
        del headers
        return get_predict_response(payload, self._model.predict(get_predict_input(payload)), self.name)


class LoopbackConfig(uvicorn.Config):
    """uvicorn's configuration with the host changed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "host": LOOPBACK})


def loopback_grpc_server(*args: Any, **kwargs: Any) -> Any:
    """Return a grpc.aio server whose insecure port opens on loopback whatever host is asked for."""
    server: Any = grpc.aio.server(*args, **kwargs)
    add_insecure_port = server.add_insecure_port
    server.add_insecure_port = lambda address: add_insecure_port(f"{LOOPBACK}:{address.rpartition(':')[2]}")
    return server


def listen_on_loopback() -> None:
    rest_server.uvicorn = SimpleNamespace(Config=LoopbackConfig, Server=uvicorn.Server)
    grpc_server.aio = SimpleNamespace(server=loopback_grpc_server)


if __name__ == "__main__":
    listen_on_loopback()
    named = [argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument]
    ModelServer().start([SklearnModel(name, artifact) for name, artifact in named])
