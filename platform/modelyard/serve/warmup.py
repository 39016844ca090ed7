# SPDX-License-Identifier: Apache-2.0
"""Requests that a replica answers before it counts as loaded: ``warmup`` in a model's description.

They go the way of any other request in the replica, so whatever is made at the first one is made by then, and a model
that cannot answer them has not loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from modelyard.batching import split
from modelyard.dataplane import to_call
from modelyard.errors import ModelLoadError, ModelyardError
from modelyard.protocol.generate import decode_generate
from modelyard.protocol.v1 import decode_predict
from modelyard.serve.runners import Runners
from modelyard.signature import Signature


async def warm_up(runners: Runners, signature: Signature, requests: Sequence[Mapping[str, Any]]) -> None:
    """Asks each of them; nothing of it is counted.

    Args:
        runners: What answers; begun.
        signature: The model's own.
        requests: Bodies of v1 ``:predict`` (``{"instances": …}`` or ``{"inputs": …}``), or of ``generate`` where the
            model streams.

    Raises:
        ModelLoadError: With the number of the request that was not answered, and why.
    """
    for number, request in enumerate(requests):
        try:
            await _ask(runners, signature, orjson.dumps(dict(request)))
        except ModelyardError as exc:
            raise ModelLoadError(f"its warm-up request {number} was not answered: {exc}") from exc
    runners.forget_counts()


async def _ask(runners: Runners, signature: Signature, body: bytes) -> None:
    if signature.decoupled:
        call = to_call("", signature, decode_generate(body, signature))
        async with contextlib.aclosing(runners.stream(call)) as answers:
            async for _ in answers:
                pass
        return
    request, _ = decode_predict(body, signature)
    call = to_call("", signature, request)
    (outputs,) = split(await runners.submit(call), call.rows)
    if isinstance(outputs, ModelyardError):
        raise outputs
