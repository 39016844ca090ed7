# SPDX-License-Identifier: Apache-2.0
"""Speech: WAV files are read by the standard library, others where soundfile is installed.

transformers' own pipeline cuts long recordings and joins what was heard.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Model
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._huggingface_load import Loaded, load_part
from modelyard_deployments._huggingface_options import HuggingFaceOptions
from modelyard_deployments._huggingface_values import read_parameter, to_files, to_json_array, to_text_array

_AUDIO: Final = "audio"
_HEADS: Final = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"FORM")
_RIFF: Final = b"RIFF"
_RATES: Final = range(1000, 768_001)
"""Samples a second that are read. Others are damage, and converting them would take all the memory there is."""
_WHISPER_S: Final = 30.0
"""Seconds that a Whisper hears at once."""


def decode_audio(array: Array, rate: int) -> list[Array]:
    """FP32 ``[samples]`` of each file, one channel at that rate.

    Raises:
        InvalidRequest: One is no audio, or has another rate and nothing that converts it is installed.
    """
    files = to_files(_AUDIO, array, lambda item: item.startswith(_HEADS))
    return [decode_file(f'input "{_AUDIO}"[{row}]', item, rate) for row, item in enumerate(files)]


def decode_file(where: str, item: bytes, rate: int) -> Array:
    """FP32 ``[samples]`` of one file; ``where`` is what messages call it.

    Raises:
        InvalidRequest: As for :func:`decode_audio`.
    """
    try:
        samples, found = _read_wave(item) if item.startswith(_RIFF) else _read_other(item)
    except (wave.Error, EOFError, ValueError, TypeError, RuntimeError, ImportError) as exc:  # TypeError: 40 bits
        raise InvalidRequest(
            f"{where}: expected a WAV file of 8, 16, 24 or 32 bits, got something else: {exc}"
        ) from exc
    if found not in _RATES:
        raise InvalidRequest(f"{where}: expected {_RATES[0]} to {_RATES[-1]} samples a second, got {found}")
    if not len(samples):
        raise InvalidRequest(f"{where}: the recording is empty")
    return _resample(where, samples.mean(axis=1), found, rate)


def _read_wave(item: bytes) -> tuple[Array, int]:
    """Samples ``[n, channels]`` between -1 and 1, and their rate."""
    with wave.open(io.BytesIO(item)) as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        raw = file.readframes(file.getnframes())
    raw = raw[: len(raw) // (width * channels) * width * channels]
    if width == 1:
        samples = (np.frombuffer(raw, dtype=np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        wide = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
        samples = wide.view("<i4").reshape(-1).astype(np.float32) / 2**31
    else:
        samples = np.frombuffer(raw, dtype=f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return samples.reshape(-1, channels), rate


def _read_other(item: bytes) -> tuple[Array, int]:
    import soundfile  # not installed everywhere

    samples, rate = soundfile.read(io.BytesIO(item), dtype="float32", always_2d=True)
    return samples, int(rate)


def _resample(where: str, samples: Array, found: int, rate: int) -> Array:
    if found == rate:
        return samples
    try:
        from scipy.signal import resample_poly
    except ImportError:
        raise InvalidRequest(f"{where}: expected {rate} samples a second, got {found}; install scipy") from None
    common = math.gcd(found, rate)
    try:
        converted: Array = resample_poly(samples, rate // common, found // common).astype(np.float32)
    except (ValueError, MemoryError) as exc:
        raise InvalidRequest(f"{where}: {found} samples a second cannot be made {rate}: {exc}") from exc
    return converted


@dataclass(frozen=True, slots=True)
class Settings:
    """What is wanted of a recording.

    Attributes:
        language: Which is spoken, for Whisper; None where it has to find out.
        translates: To English, Whisper only.
        is_timed: With the moments at which parts of the text begin and end: sentences of Whisper, else words.
        by_word: Of each word, where Whisper could tell of sentences.
        tells_language: With the language that was heard.
    """

    language: str | None = None
    translates: bool = False
    is_timed: bool = False
    by_word: bool = False
    tells_language: bool = False


class SpeechRecognition(Model):
    """What is said in recordings.

    Attributes:
        rate: Samples a second that the model hears.
        is_whisper: It is Whisper, which knows languages.
        is_multilingual: It is a Whisper of several.
        tells_times: It knows when what was said.
        tells_words: It knows so of each word.
    """

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline

        extractor = load_part(loaded.folder, "AutoFeatureExtractor", "the feature extractor", options)
        tokenizer = load_part(loaded.folder, "AutoTokenizer", "the tokenizer", options)
        settings: dict[str, Any] = {} if options.chunk_length_s is None else {"chunk_length_s": options.chunk_length_s}
        if options.max_new_tokens is not None:
            if not loaded.model.can_generate():
                raise ModelLoadError("option max_new_tokens: the model hears sounds one by one, and generates nothing")
            settings["max_new_tokens"] = options.max_new_tokens
        self.rate = int(extractor.sampling_rate)
        self._lock = threading.Lock()
        self._pipeline = AutomaticSpeechRecognitionPipeline(
            model=loaded.model,
            feature_extractor=extractor,
            tokenizer=tokenizer,
            device=loaded.model.device,
            **settings,
        )
        self.is_whisper = self._pipeline.type == "seq2seq_whisper"
        generation = getattr(loaded.model, "generation_config", None)
        self.is_multilingual = self.is_whisper and bool(getattr(generation, "is_multilingual", False))
        has_stamps = self.is_whisper and hasattr(generation, "no_timestamps_token_id")
        self.tells_times = has_stamps or self._pipeline.type == "ctc"
        self.tells_words = self._pipeline.type == "ctc" or (has_stamps and hasattr(generation, "alignment_heads"))
        # What Whisper hears at once; it cuts longer recordings itself, by the moments that it tells.
        self._most_samples = extractor.n_samples if self.is_whisper and options.chunk_length_s is None else math.inf
        self._signature = Signature(
            inputs=(TensorSpec(_AUDIO, "BYTES", (-1,), content_type="base64"),),
            outputs=(TensorSpec("text", "BYTES", (-1,)),),
            on_request=(TensorSpec("chunks", "BYTES", (-1,), content_type="json"),) if self.tells_times else (),
            any_input_name=True,
            example={_AUDIO: _silence(self.rate)},
        )

    @property
    def signature(self) -> Signature:
        """``audio``, a file; ``text``, and when asked for ``chunks`` of it with the seconds they begin and end at."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Listens to one recording after the other.

        Raises:
            InvalidRequest: One is no recording, or the model does not know the ``language``.
        """
        language = read_parameter(parameters, "language", str, "") or None
        settings = Settings(language, is_timed="chunks" in outputs)
        heard = [self.hear(one, settings) for one in decode_audio(inputs[_AUDIO], self.rate)]
        answers = {
            "text": to_text_array([one["text"] for one in heard]),
            "chunks": to_json_array([one.get("chunks") for one in heard]),
        }
        return {name: answers[name] for name in outputs}

    def hear(self, samples: Array, settings: Settings) -> dict[str, Any]:
        """The ``text`` of a recording, and with times its ``chunks``.

        Raises:
            InvalidRequest: The model does not know the language, or none at all, or it is too long for words.
        """
        if settings.by_word and len(samples) > self._most_samples:
            raise InvalidRequest(  # the attentions of all its parts would be kept until the end: gigabytes
                f"file: expected at most {_WHISPER_S:g} s where the time of each word is asked for, got "
                f"{len(samples) / self.rate:.1f} s: ask for segments, or send it in parts"
            )
        if settings.language and not self.is_whisper:
            raise InvalidRequest(
                f'language: the model knows one language and no names of any, got "{settings.language}"'
            )
        try:
            with self._lock, _keeping_attention(self._pipeline.model.config):
                recording = {"raw": samples, "sampling_rate": self.rate}
                heard: dict[str, Any] = self._pipeline(recording, **self._to_arguments(settings, len(samples)))
        except ValueError as exc:
            if "language" not in str(exc).lower():
                raise
            raise InvalidRequest(f"language: {str(exc)[:200]}") from exc
        return heard

    def _to_arguments(self, settings: Settings, samples: int) -> dict[str, Any]:
        """Of the pipeline, for a recording of so many samples."""
        wanted: dict[str, Any] = {}
        if settings.is_timed:
            wanted["return_timestamps"] = True if self.is_whisper and not settings.by_word else "word"
        elif samples > self._most_samples:
            wanted |= {"return_timestamps": True} if self.tells_times else {"chunk_length_s": _WHISPER_S}
        if settings.tells_language:
            wanted["return_language"] = True
        generation = {"language": settings.language} if settings.language else {}
        generation |= {"task": "translate"} if settings.translates else {}
        return wanted | ({"generate_kwargs": generation} if generation else {})


@contextlib.contextmanager
def _keeping_attention(config: Any) -> Iterator[None]:
    """Word times make transformers change how the model attends, slowly, and never back.

    Source: transformers ``WhisperGenerationMixin._set_return_outputs``.
    """
    before = config._attn_implementation
    try:
        yield
    finally:
        if config._attn_implementation != before:
            config._attn_implementation = before


def _silence(rate: int) -> str:
    """Some milliseconds of it, as base64 of a WAV file."""
    import base64

    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(rate)
        writer.writeframes(b"\x80" * (rate // 20))
    return base64.b64encode(file.getvalue()).decode()
