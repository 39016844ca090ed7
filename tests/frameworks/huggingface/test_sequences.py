# SPDX-License-Identifier: Apache-2.0
"""Summaries and translations."""

from typing import Any

import pytest

from modelyard.errors import InvalidRequest, ModelLoadError

BODY = b'{"instances": ["The cat sits outside.", "Nice."]}'


def test_a_request_says_how_a_text_is_written(load: Any, predict: Any) -> None:
    model = load("summaries", task="summarization")
    tokenizer = model._encoder.tokenizer
    short, long = (
        [len(tokenizer(text)["input_ids"]) for text in predict(model, BODY, max_new_tokens=count)["summary_text"]]
        for count in (3, 30)
    )
    assert max(short) < max(long)
    with pytest.raises(InvalidRequest, match='parameter "num_beams": expected an integer from 1 on, got 0'):
        predict(model, BODY, num_beams=0)


def test_beams_are_those_of_the_library(load: Any, predict: Any) -> None:
    model = load("summaries", task="summarization", max_new_tokens=8)
    encoder = model._encoder
    rows = encoder.tokenizer("Nice.", return_tensors="pt", return_token_type_ids=False)
    ids = encoder.loaded.model.generate(**rows, num_beams=3, max_new_tokens=8, do_sample=False)
    wanted = encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert predict(model, b'{"instances": ["Nice."]}', num_beams=3)["summary_text"].tolist() == wanted


def test_languages_are_refused_by_a_model_of_one_pair(load: Any) -> None:
    with pytest.raises(ModelLoadError, match="the model translates one pair only"):
        load("translations", task="translation", target_language="fr")


@pytest.fixture(scope="session")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny M2M100 with a vocabulary of its own."""
    import json

    import sentencepiece
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("m2m")
    (folder / "texts").write_text("the cat sits outside\na man is playing guitar\nnice\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts"),
        model_prefix=str(folder / "sp"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=5,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sp.model"))
    names = ["<s>", "<pad>", "</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, len(pieces)))]
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    tokenizer = transformers.M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sp.model"))
    torch.manual_seed(0)
    config = transformers.M2M100Config(
        vocab_size=256,  # its own and a hundred languages
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        max_length=12,
        init_std=0.5,
    )
    transformers.M2M100ForConditionalGeneration(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_request_says_the_languages(multilingual: Any, load: Any, predict: Any) -> None:
    model = load(multilingual, task="translation", source_language="en", target_language="de", max_new_tokens=6)
    tokenizer, network = model._encoder.tokenizer, model._encoder.loaded.model
    tokenizer.src_lang = "fr"
    rows = tokenizer("nice", return_tensors="pt")
    ids = network.generate(**rows, forced_bos_token_id=tokenizer.get_lang_id("en"), max_new_tokens=6, do_sample=False)
    wanted = tokenizer.batch_decode(ids, skip_special_tokens=True)
    answer = predict(model, b'{"instances": ["nice"]}', source_language="fr", target_language="en")
    assert answer["translation_text"].tolist() == wanted
    with pytest.raises(InvalidRequest, match='parameter "target_language": the model has no language "xx"'):
        predict(model, b'{"instances": ["nice"]}', target_language="xx")
