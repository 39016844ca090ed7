# SPDX-License-Identifier: Apache-2.0
"""The models of `binary_models` on KServe's Python server, as `kserve_runner` starts its own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from binary_models import SHAPES, answer
from kserve import InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import get_predict_response
from kserve_runner import listen_on_loopback


class Answering(Model):  # type: ignore[misc]
    """One of the models."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        del headers
        return get_predict_response(payload, answer(payload.inputs[0].as_numpy()), self.name)


if __name__ == "__main__":
    listen_on_loopback()
    ModelServer().start([Answering(name) for name in SHAPES])
