# SPDX-License-Identifier: Apache-2.0
"""Speech in the OpenAI protocol: ``/v1/audio/transcriptions`` and ``/v1/audio/translations``.

Source: OpenAI API reference, "Audio".
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from modelyard.openai import OpenAIModel, OpenAIRequest, Part
from modelyard_deployments._huggingface_audio import Settings, SpeechRecognition, decode_file
from modelyard_deployments._huggingface_load import Loaded
from modelyard_deployments._huggingface_options import HuggingFaceOptions
from modelyard_deployments._openai_multipart import Form, decode_form
from modelyard_deployments._openai_protocol import Refusal, encode, refusing

_FORMATS: Final = ("json", "text", "srt", "verbose_json", "vtt")
_TIMED: Final = ("srt", "verbose_json", "vtt")
_GRAINS: Final = "timestamp_granularities[]"
_FIELDS: Final = (
    "model",
    "language",
    "prompt",
    "response_format",
    "temperature",
    _GRAINS,
    "stream",
)
_LINE: Final = 8
"""Words of one subtitle, where the model tells of words only."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What was heard between two moments, in seconds."""

    start: float
    end: float
    text: str


class SpeechModel(SpeechRecognition, OpenAIModel):
    """Speech recognition, and for Whisper translation to English."""

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        super().__init__(loaded, options, task)
        self.openai_routes = ("audio/transcriptions", *(["audio/translations"] if self.is_multilingual else []))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hear")

    def close(self) -> None:
        """Ends the thread that computes."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        """The whole reply in one part."""
        return refusing(self._answer(request))

    async def _answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        form = decode_form(request)
        kind, grains = self._check(form)
        loop = asyncio.get_running_loop()
        samples = await loop.run_in_executor(self._thread, decode_file, "file", _find_file(form), self.rate)
        translates = request.route == "audio/translations"
        language = form.get("language") or None
        tells_language = kind == "verbose_json" and language is None and self.is_multilingual
        by_word = self.is_whisper and "word" in grains
        settings = Settings(language, translates, kind in _TIMED, by_word, tells_language and not by_word)
        heard = words = await loop.run_in_executor(self._thread, self.hear, samples, settings)
        if by_word and ("segment" in grains or tells_language):
            # Sentences and words are two ways of hearing, and the language is told with sentences only: before words
            # the pipeline puts a token of it that has no time, and shifts them all.
            again = replace(settings, by_word=False, tells_language=tells_language)
            heard = await loop.run_in_executor(self._thread, self.hear, samples, again)
        seconds = len(samples) / self.rate
        if kind != "verbose_json":
            yield self._encode(kind, heard, seconds)
            return
        task = "translate" if translates else "transcribe"
        head = {"task": task, "language": language or self._find_language(heard), "duration": seconds}
        yield encode({**head, "text": str(heard["text"]), **self._to_times(heard, words, grains, seconds)})

    def _find_language(self, heard: dict[str, Any]) -> str:
        """As the model heard it; empty where it does not tell."""
        told = [str(one["language"]) for one in heard.get("chunks") or () if one.get("language")]
        return told[0] if told else "english" if self.is_whisper and not self.is_multilingual else ""

    def _to_times(
        self, heard: dict[str, Any], words: dict[str, Any], grains: Sequence[str], seconds: float
    ) -> dict[str, Any]:
        """Members of the verbose reply."""
        members: dict[str, Any] = {}
        if "segment" in grains:
            members["segments"] = [_to_segment(*one) for one in enumerate(_to_chunks(heard, seconds))]
        if "word" in grains:
            told = _to_chunks(words, seconds)
            members["words"] = [{"word": one.text, "start": one.start, "end": one.end} for one in told]
        return members

    def _check(self, form: Form) -> tuple[str, tuple[str, ...]]:
        """The form of the reply, and which parts of the text have their times.

        Raises:
            Refusal: A field is unknown, or asks for what there is not.
        """
        for name in form.fields:
            if name not in _FIELDS:
                raise Refusal(f'unknown parameter "{name}"', name, "unknown_parameter")
        kind = form.get("response_format") or "json"
        if kind not in _FORMATS:
            raise Refusal(f'response_format: expected one of {", ".join(_FORMATS)}, got "{kind}"', "response_format")
        if not self.tells_times and kind not in ("json", "text"):
            raise Refusal("response_format: the model does not tell times; expected json or text", "response_format")
        if form.get("stream") not in (None, "", "false", "False"):
            raise Refusal("stream: the model answers whole recordings only", "stream")
        if form.get("prompt"):
            raise Refusal("prompt: the model takes none", "prompt")
        if form.get("temperature") not in (None, "", "0", "0.0"):
            raise Refusal("temperature: nothing is sampled; expected 0 or none", "temperature")
        return kind, self._check_grains(form.fields.get(_GRAINS, []), kind)

    def _check_grains(self, asked: Sequence[str], kind: str) -> tuple[str, ...]:
        known = (*(["segment"] if self.is_whisper else []), *(["word"] if self.tells_words else []))
        if asked and kind != "verbose_json":
            raise Refusal(f'{_GRAINS}: expected response_format "verbose_json" with it, got "{kind}"', _GRAINS)
        for grain in asked:
            if grain not in known:
                expected = " or ".join(known)
                raise Refusal(f'{_GRAINS}: the model tells times by {expected}, got "{grain[:80]}"', _GRAINS)
        return tuple(asked) or known[:1]

    def _encode(self, kind: str, heard: dict[str, Any], seconds: float) -> Part:
        """A reply that is no verbose one."""
        text = str(heard["text"])
        if kind == "text":
            return Part(f"{text}\n".encode(), 200, "text/plain; charset=utf-8")
        if kind == "json":
            return encode({"text": text, "usage": {"type": "duration", "seconds": math.ceil(seconds)}})
        chunks = _to_chunks(heard, seconds)
        lines = chunks if self.is_whisper else _to_lines(chunks)
        return Part(_to_subtitles(lines, kind).encode(), 200, "text/plain; charset=utf-8")


def _find_file(form: Form) -> bytes:
    if "file" not in form.files:
        raise Refusal('missing required parameter "file"', "file", "missing_required_parameter")
    return form.files["file"]


def _to_chunks(heard: dict[str, Any], seconds: float) -> list[Chunk]:
    """The last one may have no end: it is the recording's."""
    found = []
    for one in heard.get("chunks") or []:
        start, end = one["timestamp"]
        found.append(Chunk(float(start or 0), float(seconds if end is None else end), one["text"].strip()))
    return found


def _to_segment(index: int, chunk: Chunk) -> dict[str, Any]:
    """With the members that OpenAI's clients require; those of Whisper's search are not known here, and zero."""
    return {
        "id": index,
        "seek": 0,
        "start": chunk.start,
        "end": chunk.end,
        "text": chunk.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": 0.0,
        "no_speech_prob": 0.0,
    }


def _to_lines(words: Sequence[Chunk]) -> list[Chunk]:
    groups = [words[at : at + _LINE] for at in range(0, len(words), _LINE)]
    return [Chunk(group[0].start, group[-1].end, " ".join(word.text for word in group)) for group in groups]


def _to_subtitles(chunks: Sequence[Chunk], kind: str) -> str:
    mark = "," if kind == "srt" else "."
    blocks = [f"{_to_clock(one.start, mark)} --> {_to_clock(one.end, mark)}\n{one.text}\n" for one in chunks]
    if kind == "vtt":
        return "WEBVTT\n\n" + "\n".join(blocks)
    return "\n".join(f"{index}\n{block}" for index, block in enumerate(blocks, 1))


def _to_clock(seconds: float, mark: str) -> str:
    whole = round(seconds * 1000)
    return f"{whole // 3600000:02}:{whole // 60000 % 60:02}:{whole // 1000 % 60:02}{mark}{whole % 1000:03}"
