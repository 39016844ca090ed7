# SPDX-License-Identifier: Apache-2.0
"""Speech in the OpenAI protocol, by a model that hears letters and by a Whisper."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai.types.audio import Transcription, TranscriptionVerbose

from modelyard.openai import OpenAIRequest
from modelyard_deployments._openai_multipart import decode_form
from modelyard_deployments._openai_protocol import Refusal


@pytest.fixture
def record(trainers: Any) -> Any:
    trainers("huggingface")
    return sys.modules["modelyard_cases_huggingface"]._recording


def form(file: bytes | None, route: str = "audio/transcriptions", **fields: Any) -> OpenAIRequest:
    files = {} if file is None else {"file": ("tone.wav", file, "audio/wav")}
    # Without a file httpx makes no form of several parts.
    sent = httpx.Request("POST", "http://host/", files=files or {"other": ("x", b"x")}, data={"model": "m", **fields})
    return OpenAIRequest(route, sent.read(), sent.headers["content-type"])


async def ask(model: Any, file: bytes | None, **fields: Any) -> tuple[int, bytes]:
    (part,) = [part async for part in model.answer(form(file, **fields))]
    return part.status, part.data


async def test_text_is_what_v1_answers(load: Any, record: Any) -> None:
    model, file = load("speech"), record(0.8)
    array = np.empty(1, dtype=object)
    array[0] = file
    wanted = model.predict({"audio": array}, ("text",), {})["text"][0]
    status, data = await ask(model, file)
    assert (status, Transcription.model_validate_json(data).text) == (200, wanted)
    assert json.loads(data)["usage"] == {"type": "duration", "seconds": 1}
    assert (await ask(model, file, response_format="text"))[1].decode() == f"{wanted}\n"


async def test_words_have_their_times(load: Any, record: Any) -> None:
    model, file = load("speech"), record(0.8)
    verbose = TranscriptionVerbose.model_validate_json((await ask(model, file, response_format="verbose_json"))[1])
    assert verbose.words
    assert " ".join(word.word for word in verbose.words) == verbose.text
    subtitles = (await ask(model, file, response_format="srt"))[1].decode()
    assert subtitles.startswith("1\n00:00:00,")
    assert (await ask(model, file, response_format="vtt"))[1].startswith(b"WEBVTT\n\n00:00:00.")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "0.7"}, "temperature"),
        ({"prompt": "Ulm"}, "prompt"),
        ({"stream": "true"}, "stream"),
        ({"colour": "red"}, "colour"),
        ({"language": "en"}, None),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        ({"response_format": "verbose_json", "timestamp_granularities[]": "segment"}, "timestamp_granularities[]"),
    ],
)
async def test_what_is_not_honoured_is_refused(
    fields: dict[str, str], param: str | None, load: Any, record: Any
) -> None:
    status, data = await ask(load("speech"), record(0.2), **fields)
    assert (status, json.loads(data)["error"]["param"]) == (400, param)


async def test_a_file_is_needed_and_has_to_be_a_recording(load: Any) -> None:
    model = load("speech")
    status, data = await ask(model, None)
    assert (status, json.loads(data)["error"]["code"]) == (400, "missing_required_parameter")
    status, data = await ask(model, b"no recording")
    assert (status, json.loads(data)["error"]["message"][:30]) == (400, "file: expected a WAV file of 8")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{}", "application/json"),
        (b"{}", "multipart/form-data"),
        (b"--x", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1', "multipart/form-data; boundary=x"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--", "multipart/form-data; boundary=x"),
        (b"--x\r\nnothing\r\n--x--", "multipart/form-data; boundary=x"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(Refusal, match="expected"):
        decode_form(OpenAIRequest("audio/transcriptions", body, content_type))


def test_files_keep_every_byte() -> None:
    content = bytes(range(256)) + b"\r\n--\r\n\n\r"
    found = decode_form(form(content, language="dé"))
    assert (found.files, found.get("language"), found.get("model")) == ({"file": content}, "dé", "m")


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper of two languages."""
    import torch
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path_factory.mktemp("whisper")
    letters = sorted(ByteLevel.alphabet())
    named = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    named += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    times = [f"<|{index * 0.02:.2f}|>" for index in range(1501)]
    ids = {token: index for index, token in enumerate([*letters, *named, *times])}
    tokenizer = transformers.WhisperTokenizer(
        vocab={letter: ids[letter] for letter in letters} | {"<|endoftext|>": ids["<|endoftext|>"]},
        merges=[],
        additional_special_tokens=named[1:],
    )
    tokenizer.add_tokens(times)
    assert tokenizer.convert_tokens_to_ids("<|1.00|>") == ids["<|1.00|>"]
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=len(ids),
        num_mel_bins=80,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=64,
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        init_std=0.5,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    settings = {
        "is_multilingual": True,
        "lang_to_id": {name: ids[name] for name in ("<|en|>", "<|de|>")},
        "task_to_id": {"translate": ids["<|translate|>"], "transcribe": ids["<|transcribe|>"]},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "max_initial_timestamp_index": 50,
        "max_length": 20,
        "return_timestamps": False,  # as the folders of Whisper's own models say
        "alignment_heads": [[0, 0], [0, 1]],
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
    }
    for name, value in settings.items():  # most are Whisper's own
        setattr(model.generation_config, name, value)
    model.generation_config._from_model_config = False  # or it would be made anew when it is loaded
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return folder


async def test_whisper_writes_as_its_pipeline_does(whisper: Path, load: Any, record: Any) -> None:
    model, file = load(whisper), record(0.5)
    assert model.openai_routes == ("audio/transcriptions", "audio/translations")
    samples = np.frombuffer(file[44:], "<i2").astype(np.float32) / 2**15
    for language in ("en", "de"):
        wanted = model._pipeline({"raw": samples, "sampling_rate": 16_000}, generate_kwargs={"language": language})
        assert wanted["text"]
        status, data = await ask(model, file, language=language)
        assert (status, json.loads(data)["text"]) == (200, wanted["text"])
    status, data = await ask(model, file, route="audio/translations", language="de")
    translated = {"language": "de", "task": "translate"}
    wanted = model._pipeline({"raw": samples, "sampling_rate": 16_000}, generate_kwargs=translated)
    assert json.loads(data)["text"] == wanted["text"]
    verbose = (await ask(model, file, language="en", response_format="verbose_json"))[1]
    assert TranscriptionVerbose.model_validate_json(verbose).segments is not None


async def test_a_long_recording_is_heard_whole(whisper: Path, load: Any, record: Any) -> None:
    model = load(whisper)
    for kind in ("json", "verbose_json"):
        status, data = await ask(model, record(31), language="en", response_format=kind)
        assert (status, bool(json.loads(data)["text"])) == (200, True)


# The tiny model says next to nothing, of which torch can tell no deviation.
@pytest.mark.filterwarnings(r"ignore:std\(\)")
async def test_whisper_tells_times_by_segment_and_by_word(whisper: Path, load: Any, record: Any) -> None:
    async def told(*grains: str) -> set[str]:
        fields = {"language": "en", "response_format": "verbose_json", "timestamp_granularities[]": list(grains)}
        status, data = await ask(load(whisper), record(0.5), **fields)
        assert status == 200
        return json.loads(data).keys() & {"segments", "words"}

    assert await told() == await told("segment") == {"segments"}
    assert await told("word") == {"words"}
    assert await told("word", "segment") == {"words", "segments"}


async def test_whisper_says_which_language_it_heard(whisper: Path, load: Any, record: Any) -> None:
    verbose = json.loads((await ask(load(whisper), record(0.5), response_format="verbose_json"))[1])
    assert verbose["language"] in ("english", "german")


@pytest.mark.filterwarnings(r"ignore:std\(\)")
async def test_words_have_their_own_times_where_the_language_is_found_out(
    whisper: Path, load: Any, record: Any
) -> None:
    model, file = load(whisper), record(0.5)
    attention = model._pipeline.model.config._attn_implementation
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    status, data = await ask(model, file, **fields)
    assert (status, json.loads(data)["language"] in ("english", "german")) == (200, True)
    assert model._pipeline.model.config._attn_implementation == attention
    samples = np.frombuffer(file[44:], "<i2").astype(np.float32) / 2**15
    wanted = model._pipeline({"raw": samples, "sampling_rate": 16_000}, return_timestamps="word")["chunks"]
    assert [one["start"] for one in json.loads(data)["words"]] == [one["timestamp"][0] for one in wanted]


async def test_words_of_long_recordings_are_refused(whisper: Path, load: Any, record: Any) -> None:
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    status, data = await ask(load(whisper), record(31), language="en", **fields)
    assert (status, "at most 30 s" in json.loads(data)["error"]["message"]) == (400, True)


async def test_an_unknown_language_is_the_clients_mistake(whisper: Path, load: Any, record: Any) -> None:
    status, data = await ask(load(whisper), record(0.2), language="klingon")
    assert (status, "klingon" in json.loads(data)["error"]["message"]) == (400, True)
