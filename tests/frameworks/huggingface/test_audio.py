# SPDX-License-Identifier: Apache-2.0
"""Recordings: WAV of every width and rate."""

import base64
import json
import struct
import sys
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest
from modelyard_deployments._huggingface_audio import decode_audio


@pytest.fixture
def record(trainers: Any) -> Any:
    trainers("huggingface")
    return sys.modules["modelyard_cases_huggingface"]._recording


def _array(*files: bytes) -> Any:
    array = np.empty(len(files), dtype=object)
    array[:] = files
    return array


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_the_same_in_every_width(width: int, channels: int, record: Any) -> None:
    (wanted,) = decode_audio(_array(record(0.1, width=4)), 16_000)
    (samples,) = decode_audio(_array(record(0.1, width=width, channels=channels)), 16_000)
    np.testing.assert_allclose(samples, wanted, atol=0.02 if width == 1 else 1e-4)
    assert samples.dtype == np.float32


def test_other_rates_are_converted(record: Any) -> None:
    (wanted,) = decode_audio(_array(record(0.5)), 16_000)
    (samples,) = decode_audio(_array(record(0.5, rate=44_100)), 16_000)
    assert len(samples) == len(wanted)
    np.testing.assert_allclose(samples[200:-200], wanted[200:-200], atol=0.02)


def test_what_is_no_recording_is_the_clients_mistake(load: Any, predict: Any, record: Any) -> None:
    model = load("speech")
    for content in (b"RIFF nothing", record(0.1)[:20], record(0)):
        body = json.dumps({"instances": [base64.b64encode(content).decode()]}).encode()
        with pytest.raises(InvalidRequest, match=r'input "audio"\[0\]: '):
            predict(model, body)


def _with_header(bits: int, rate: int) -> bytes:
    """A WAV file of silence that says so of itself."""
    size = max(1, (bits + 7) // 8)
    head = struct.pack("<HHIIHH", 1, 1, rate, min(rate * size, 2**32 - 1), size, bits)
    body = b"WAVEfmt \x10\0\0\0" + head + b"data\x78\0\0\0" + b"\0" * 120
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 4_294_967_291])
def test_a_rate_that_no_recording_has_is_the_clients_mistake(rate: int) -> None:
    with pytest.raises(InvalidRequest, match=f"expected 1000 to 768000 samples a second, got {rate}$"):
        decode_audio(_array(_with_header(16, rate)), 16_000)


def test_every_other_rate_is_converted() -> None:
    for rate in (1000, 768_000):
        (samples,) = decode_audio(_array(_with_header(16, rate)), 16_000)
        assert len(samples) == -(-60 * 16_000 // rate)


def test_a_width_that_is_none_of_numbers_is_the_clients_mistake() -> None:
    with pytest.raises(InvalidRequest, match=r"expected a WAV file of 8, 16, 24 or 32 bits, got .*i5"):
        decode_audio(_array(_with_header(40, 16_000)), 16_000)


def test_chunks_have_the_seconds_of_words(load: Any, predict: Any, record: Any) -> None:
    body = json.dumps({"instances": [base64.b64encode(record(0.8)).decode()]}).encode()
    model = load("speech")
    answer = predict(model, body, ("text", "chunks"))
    chunks = json.loads(answer["chunks"][0])
    assert " ".join(one["text"] for one in chunks) == answer["text"][0]
    assert all(0 <= start <= end <= 0.8 for start, end in (one["timestamp"] for one in chunks))


def test_a_long_recording_is_heard_in_chunks(load: Any, predict: Any, record: Any) -> None:
    body = json.dumps({"instances": [base64.b64encode(record(3)).decode()]}).encode()
    assert predict(load("speech", chunk_length_s=1), body)["text"][0]
