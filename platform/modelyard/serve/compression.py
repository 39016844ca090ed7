# SPDX-License-Identifier: Apache-2.0
"""Compressed HTTP bodies without holding up the event loop: large ones are worked on in threads.

"One request": inside the HTTP edge, around the handlers.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Final

from modelyard.errors import TooLarge
from modelyard.protocol.compression import choose_encoding, compress, inflate
from modelyard.protocol.http import Encoded

_INLINE_BYTES: Final = 128 * 1024
"""Up to this much is done on the event loop: about a millisecond."""
_THREADS: Final = 2
"""A few hundred bytes can become a whole ``max_body_bytes``; so many of those are made at once."""
_VARY: Final = (b"vary", b"accept-encoding")


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="compression")


async def inflate_body(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """A request's body as its client had it. What it becomes is known only then, so a short attempt comes first.

    Raises:
        TooLarge: It is over ``max_bytes``.
        InvalidRequest: It is no such data.
    """
    if len(body) <= _INLINE_BYTES:
        try:
            return inflate(body, encoding, min(max_bytes, _INLINE_BYTES))
        except TooLarge:
            if max_bytes <= _INLINE_BYTES:
                raise
    return await asyncio.get_running_loop().run_in_executor(_threads(), inflate, body, encoding, max_bytes)


async def compress_reply(reply: Encoded, accept: bytes, min_bytes: int) -> Encoded:
    """The reply in the coding its client likes best, or as it is where that is none or makes it no shorter.

    Args:
        reply: With a whole body.
        accept: The request's ``accept-encoding``; empty where it has none.
        min_bytes: Shorter bodies stay plain, unless the client refuses that.
    """
    choice = choose_encoding(accept.decode("latin-1"))
    is_short = len(reply.body) < min_bytes
    if is_short and not choice.is_forced:
        return reply
    if not choice.encoding:
        return replace(reply, headers=(*reply.headers, _VARY))
    if len(reply.body) <= _INLINE_BYTES:
        body = compress(reply.body, choice.encoding)
    else:
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(_threads(), compress, reply.body, choice.encoding)
    if len(body) >= len(reply.body) and not choice.is_forced:
        return replace(reply, headers=(*reply.headers, _VARY))
    kept = (pair for pair in reply.headers if pair[0] != b"content-length")
    added = ((b"content-length", b"%d" % len(body)), (b"content-encoding", choice.encoding.encode()), _VARY)
    return Encoded(reply.status, body, (*kept, *added))
