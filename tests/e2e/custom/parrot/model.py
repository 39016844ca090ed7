# SPDX-License-Identifier: Apache-2.0
"""Speaks the OpenAI protocol without a language model: says which process answered."""

import os

import orjson

import modelyard
from modelyard.openai import OpenAIModel, Part


class Parrot(OpenAIModel):
    signature = modelyard.Signature(
        inputs=(modelyard.TensorSpec("text_input", "BYTES", (1,)),),
        outputs=(modelyard.TensorSpec("text_output", "BYTES", (1,)),),
        batch_axis=False,
    )
    openai_routes = ("chat/completions",)

    def predict(self, inputs, outputs, parameters):
        return {"text_output": inputs["text_input"]}

    async def answer(self, request):
        message = {"role": "assistant", "content": str(os.getpid())}
        yield Part(orjson.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]}))
