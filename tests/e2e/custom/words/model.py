# SPDX-License-Identifier: Apache-2.0
"""A decoupled model: each word of a text is an answer of its own."""

import time

import numpy as np

import modelyard


class Words(modelyard.Model):
    signature = modelyard.Signature(
        inputs=(
            modelyard.TensorSpec("text_input", "BYTES", (1,)),
            modelyard.TensorSpec("delay_ms", "INT32", (1,), optional=True),
        ),
        outputs=(modelyard.TensorSpec("text_output", "BYTES", (1,)), modelyard.TensorSpec("index", "INT32", (1,))),
        batch_axis=False,
        decoupled=True,
    )

    def predict(self, inputs, outputs, parameters):
        raise NotImplementedError

    def stream(self, inputs, outputs, parameters):
        delay_s = int(inputs["delay_ms"][0]) / 1000 if "delay_ms" in inputs else 0
        for index, word in enumerate(inputs["text_input"][0].split()):
            time.sleep(delay_s)
            if word == b"fail":
                raise RuntimeError("asked to fail, in /a/secret/path")
            yield {"text_output": np.array([word], dtype=object), "index": np.array([index], dtype=np.int32)}
