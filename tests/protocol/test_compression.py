# SPDX-License-Identifier: Apache-2.0
"""Compressed bodies: what is read back, what is refused, and which coding a client gets."""

from __future__ import annotations

import gzip
import time
import zlib

import pytest

from modelyard.errors import InvalidRequest, TooLarge, UnsupportedMediaType
from modelyard.protocol.compression import Choice, choose_encoding, compress, find_encoding, inflate

TEXT = b'{"instances": [[1, 2, 3, 4]]}' * 300


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    return stream.compress(body) + stream.flush()


PACKED = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "several gzip members": ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(b"") + gzip.compress(TEXT[100:])),
    "stored gzip": ("gzip", gzip.compress(TEXT, 0)),
    "zlib": ("deflate", zlib.compress(TEXT)),
    "zlib, best": ("deflate", zlib.compress(TEXT, 9)),
    "raw deflate": ("deflate", raw_deflate(TEXT)),
    "our gzip": ("gzip", compress(TEXT, "gzip")),
    "our deflate": ("deflate", compress(TEXT, "deflate")),
}
each_packed = pytest.mark.parametrize(("encoding", "body"), PACKED.values(), ids=PACKED)


@each_packed
def test_what_was_compressed_is_read_back(encoding: str, body: bytes) -> None:
    assert inflate(body, encoding, len(TEXT)) == TEXT


@each_packed
def test_one_byte_over_the_limit_is_too_large(encoding: str, body: bytes) -> None:
    with pytest.raises(TooLarge, match=f"decompressed request body: expected at most {len(TEXT) - 1} bytes, got more"):
        inflate(body, encoding, len(TEXT) - 1)


@each_packed
def test_every_cut_is_refused(encoding: str, body: bytes) -> None:
    whole = {len(gzip.compress(TEXT[:100])), len(gzip.compress(TEXT[:100]) + gzip.compress(b""))}
    ends = [end for end in range(1, len(body), 7) if end not in whole]
    for end in ends:
        with pytest.raises(InvalidRequest, match=r"cut off|corrupt"):
            inflate(body[:end], encoding, len(TEXT))


@each_packed
@pytest.mark.parametrize("garbage", [b"\0", b"garbage after the end", gzip.compress(b"x")[:-1]])
def test_what_follows_the_end_is_refused(encoding: str, body: bytes, garbage: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"after the end|corrupt|cut off"):
        inflate(body + garbage, encoding, 2 * len(TEXT))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("body", [b"\x1f\x8b", b"{}", TEXT, b"\xff" * 50, b"\x78\x9c" + b"\xff" * 50])
def test_what_is_no_such_data_is_refused(encoding: str, body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"compressed data|after the end"):
        inflate(body, encoding, 10**6)


def test_a_wrong_checksum_is_refused() -> None:
    body = bytearray(gzip.compress(TEXT))
    body[-8] ^= 1
    with pytest.raises(InvalidRequest, match="corrupt"):
        inflate(bytes(body), "gzip", len(TEXT))


def test_an_empty_body_stays_empty() -> None:
    assert inflate(b"", "gzip", 1) == b""


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    began = time.process_time()
    with pytest.raises(TooLarge):
        inflate(bomb, "gzip", 100_000)
    assert time.process_time() - began < 0.05


def test_thousands_of_empty_members_are_refused_quickly() -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest, match="after the end"):
        inflate(gzip.compress(b"") * 500_000, "gzip", 10**6)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("header", "encoding"),
    [("gzip", "gzip"), (" GZip ", "gzip"), ("x-gzip", "gzip"), ("deflate", "deflate"), ("identity", None), ("", None)],
)
def test_the_encoding_of_a_body(header: str, encoding: str | None) -> None:
    assert find_encoding(header) == encoding


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, deflate", "gzip;q=1"])
def test_an_unknown_encoding_is_told_what_is_read(header: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=f'expected gzip or deflate, got "{header}"'):
        find_encoding(header)


@pytest.mark.parametrize(
    ("accept", "encoding", "is_forced"),
    [
        ("gzip", "gzip", False),
        ("gzip, deflate, br, zstd", "gzip", False),
        ("deflate", "deflate", False),
        ("deflate, gzip;q=0.5", "deflate", False),
        ("gzip;q=0.001,deflate;q=0", "gzip", False),
        (" GZIP ; Q=0.5 ", "gzip", False),
        ("x-gzip", "gzip", False),
        ("*", "gzip", False),
        ("*;q=0.5, deflate", "deflate", False),
        ("gzip;q=0, *", "deflate", False),
        ("", "", False),
        ("br", "", False),
        ("identity", "", False),
        ("gzip;q=0", "", False),
        ("gzip;q=0.0, deflate;q=0.000", "", False),
        ("identity, gzip;q=0.5", "", False),
        ("identity;q=0.5, gzip;q=0.5", "gzip", False),
        ("*;q=0, identity", "", False),
        ("gzip, identity;q=0", "gzip", True),
        ("gzip, *;q=0", "gzip", True),
        ("deflate;q=0.1, *;q=0", "deflate", True),
        ("identity;q=0", "", False),
        ("*;q=0", "", False),
        ("gzip;q=2, deflate;q=nan, br;q=", "", False),
        ("gzip;q=1.5, deflate;q=0.2", "deflate", False),
        (",,;;,gzip", "gzip", False),
    ],
)
def test_the_client_gets_what_it_likes_best(accept: str, encoding: str, is_forced: bool) -> None:
    assert choose_encoding(accept) == Choice(encoding, is_forced)
