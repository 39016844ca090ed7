# SPDX-License-Identifier: Apache-2.0
"""gzip and deflate of HTTP bodies, and which of them a client takes.

"One request": before the decoder and after the encoder, where the headers say so.

Source: RFC 9110, sections 8.4.1 "Content Codings" and 12.5.3 "Accept-Encoding"; RFC 1952 (gzip).
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Final, NamedTuple

from modelyard.errors import InvalidRequest, TooLarge, UnsupportedMediaType

ENCODINGS: Final = ("gzip", "deflate")
"""What is read and written; of two that a client likes equally the first is written."""

_ALIASES: Final = {"x-gzip": "gzip"}
_GZIP: Final = 31
_ZLIB: Final = 15
_RAW: Final = -15
_LEVEL: Final = 1
_MAX_MEMBERS: Final = 10_000
_FIRST_CHUNK: Final = 4096
_MAX_CHUNK: Final = 1024 * 1024
_QUALITY: Final = re.compile(r"q=(0(\.\d{0,3})?|1(\.0{0,3})?)", re.IGNORECASE)


class Choice(NamedTuple):
    """What a client takes.

    Attributes:
        encoding: Of :data:`ENCODINGS`; empty where none is to be used.
        is_forced: The plain body is refused, however short it is.
    """

    encoding: str
    is_forced: bool


def find_encoding(header: str) -> str | None:
    """The coding a ``content-encoding`` names; None where the body is as it is.

    Raises:
        UnsupportedMediaType: It is not one that is read, or there are several.
    """
    name = header.strip().lower()
    name = _ALIASES.get(name, name)
    if name in ("", "identity"):
        return None
    if name not in ENCODINGS:
        raise UnsupportedMediaType(f'content encoding: expected {" or ".join(ENCODINGS)}, got "{header[:40]}"')
    return name


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body that was compressed; never more than ``max_bytes`` of it are made.

    ``deflate`` is the zlib format, and also the bare stream that some clients send under that name.

    Args:
        body: As it came; empty stays empty.
        encoding: Of :data:`ENCODINGS`.
        max_bytes: Beyond that it is refused.

    Raises:
        TooLarge: It would be larger.
        InvalidRequest: It is corrupt, cut off, or something follows it.
    """
    parts: list[bytes] = []
    left, start, members = max_bytes, 0, 0
    window = _GZIP if encoding == "gzip" else _ZLIB if _has_zlib_header(body) else _RAW
    while start < len(body):
        members += 1
        if members > _MAX_MEMBERS or (members > 1 and encoding != "gzip"):
            raise InvalidRequest(f"the request body has {len(body) - start} bytes after the end of its {encoding} data")
        start, left = _inflate_member(memoryview(body), start, zlib.decompressobj(window), left, parts, max_bytes)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _inflate_member(
    body: memoryview, start: int, stream: zlib._Decompress, left: int, parts: list[bytes], max_bytes: int
) -> tuple[int, int]:
    """One stream, from ``start``; where it ends, and how many bytes may still follow.

    Pieces begin small: zlib copies what is left of a piece after a stream's end, and there may be thousands of them.
    """
    size = _FIRST_CHUNK
    while not stream.eof:
        if start == len(body):
            raise InvalidRequest("the request body's compressed data is cut off")
        piece = body[start : start + size]
        try:
            part = stream.decompress(piece, left + 1)
        except zlib.error as exc:
            raise InvalidRequest(f"the request body's compressed data is corrupt: {exc}") from None
        left -= len(part)
        if left < 0:
            raise TooLarge("decompressed request body", max_bytes)
        parts.append(part)
        start += len(piece) - len(stream.unused_data)
        size = min(2 * size, _MAX_CHUNK)
    return start, left


def _has_zlib_header(body: bytes) -> bool:
    """Source: RFC 1950, section 2.2: CM is 8, and CMF and FLG are a multiple of 31."""
    return len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


def compress(body: bytes, encoding: str) -> bytes:
    """The body compressed, quickly rather than well."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if encoding == "gzip" else _ZLIB)
    return stream.compress(body) + stream.flush()


@lru_cache(maxsize=64)
def choose_encoding(accept: str) -> Choice:
    """What to answer with, by an ``accept-encoding``.

    The coding with the highest quality wins. A plain body is the last resort unless the client gives it a quality of
    its own; where it refuses everything it gets the plain body all the same.
    """
    qualities = dict(map(_parse_item, accept.split(",")))
    others = qualities.get("*")
    best, quality = "", 0.0
    for name in ENCODINGS:
        own = qualities.get(name, others or 0.0)
        if own > quality:
            best, quality = name, own
    plain = qualities.get("identity", 0.0 if others == 0.0 else None)
    if plain is not None and plain > quality:
        return Choice("", False)
    return Choice(best, bool(best) and plain == 0.0)


def _parse_item(item: str) -> tuple[str, float]:
    """A coding and its quality; 0 where that is no quality."""
    name, _, weight = item.partition(";")
    name = name.strip().lower()
    weight = weight.strip()
    found = _QUALITY.fullmatch(weight)
    quality = 1.0 if not weight else float(found[1]) if found else 0.0
    return _ALIASES.get(name, name), quality
