# SPDX-License-Identifier: Apache-2.0
"""Speaks the OpenAI protocol without a language model: says what its settings say, or which process answers."""

import os

import orjson

import modelyard
from modelyard.openai import EVENTS, OpenAIModel, Part


class Parrot(OpenAIModel):
    """`says`: its words; its process id where there is none. `pieces`: the events that they come in."""

    signature = modelyard.Signature(
        inputs=(modelyard.TensorSpec("text_input", "BYTES", (1,)),),
        outputs=(modelyard.TensorSpec("text_output", "BYTES", (1,)),),
        batch_axis=False,
    )
    openai_routes = ("chat/completions",)

    def load(self, path, settings):
        self.says = settings.get("says", str(os.getpid()))
        self.pieces = settings.get("pieces", 1)

    def predict(self, inputs, outputs, parameters):
        return {"text_output": inputs["text_input"]}

    async def answer(self, request):
        if not orjson.loads(request.body).get("stream"):
            message = {"role": "assistant", "content": self.says}
            yield Part(orjson.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]}))
            return
        size = -(-len(self.says) // self.pieces)
        for start in range(0, len(self.says), size):
            choice = {"index": 0, "delta": {"content": self.says[start : start + size]}}
            event = {"id": request.id, "object": "chat.completion.chunk", "choices": [choice]}
            yield Part(b"data: %b\n\n" % orjson.dumps(event), content_type=EVENTS)
        yield Part(b"data: [DONE]\n\n", content_type=EVENTS)
