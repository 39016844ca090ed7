# SPDX-License-Identifier: Apache-2.0
"""Embeddings are those of sentence-transformers, whatever its modules are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from modelyard.errors import InvalidRequest, ModelLoadError

TEXTS = ["The cat sits outside.", "A man is playing guitar in New York.", "Nice."]
BODY = orjson.dumps({"instances": TEXTS})


def _save(source: Path, folder: Path, *modules: Any, **settings: Any) -> Any:
    """A model of sentence-transformers around the transformer in a folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

    transformer = Transformer(str(source))
    model = SentenceTransformer(modules=[transformer, *modules], device="cpu", **settings)
    model.save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize(
    "mode", ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean")]
)
def test_each_pooling_is_theirs(mode: Any, saved: Any, load: Any, predict: Any, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    theirs = _save(saved("embeddings_of_a_bare_model"), tmp_path, Pooling(32, mode))
    np.testing.assert_allclose(predict(load(tmp_path), BODY)["embedding"], theirs.encode(TEXTS), atol=1e-5)


def test_dense_layers_and_normalization_are_theirs(saved: Any, load: Any, predict: Any, tmp_path: Path) -> None:
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling

    theirs = _save(saved("embeddings_of_a_bare_model"), tmp_path, Pooling(32), Dense(32, 16), Normalize())
    model = load(tmp_path)
    assert model.signature.outputs[0].shape == (-1, 16)
    np.testing.assert_allclose(predict(model, BODY)["embedding"], theirs.encode(TEXTS), atol=1e-5)
    longer = predict(load(tmp_path, normalize=False), BODY)["embedding"]
    assert not np.allclose(np.linalg.norm(longer, axis=1), 1)


@pytest.mark.parametrize("includes", [True, False])
def test_prompts_are_theirs(includes: bool, saved: Any, load: Any, predict: Any, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    prompts = {"query": "the man: ", "document": "a cat: "}
    pooling = Pooling(32, include_prompt=includes)
    source = saved("embeddings_of_a_bare_model")
    theirs = _save(source, tmp_path, pooling, prompts=prompts, default_prompt_name="document")
    model = load(tmp_path)
    np.testing.assert_allclose(predict(model, BODY)["embedding"], theirs.encode(TEXTS), atol=1e-5)
    asked = predict(model, BODY, prompt_name="query")["embedding"]
    np.testing.assert_allclose(asked, theirs.encode(TEXTS, prompt_name="query"), atol=1e-5)
    assert not np.allclose(asked, theirs.encode(TEXTS), atol=1e-3)
    with pytest.raises(InvalidRequest, match='the model has the prompts document, query, got "nosuch"'):
        predict(model, BODY, prompt_name="nosuch")
    with pytest.raises(ModelLoadError, match='option prompt_name: the folder has the prompts document, query, got "x"'):
        load(tmp_path, prompt_name="x")


def test_of_an_encoder_decoder_the_encoder_is_used(saved: Any, load: Any, predict: Any, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    theirs = _save(saved("summaries"), tmp_path, Pooling(32))
    np.testing.assert_allclose(predict(load(tmp_path), BODY)["embedding"], theirs.encode(TEXTS), atol=1e-5)


def test_token_embeddings_are_the_pipelines(load: Any, predict: Any) -> None:
    from transformers import FeatureExtractionPipeline

    model = load("embeddings_of_a_bare_model")
    encoder = model.embedder.encoder
    pipeline = FeatureExtractionPipeline(model=encoder.loaded.model, tokenizer=encoder.tokenizer, device="cpu")
    found = [json.loads(one) for one in predict(model, BODY, ("token_embeddings",))["token_embeddings"]]
    for ours, theirs in zip(found, pipeline(TEXTS), strict=True):
        np.testing.assert_allclose(ours, theirs[0], atol=1e-5)


def test_a_bare_model_is_pooled_as_the_option_says(load: Any, predict: Any) -> None:
    model = load("embeddings_of_a_bare_model", pooling="cls", normalize=False)
    tokens = [json.loads(one)[0] for one in predict(model, BODY, ("token_embeddings",))["token_embeddings"]]
    np.testing.assert_allclose(predict(model, BODY)["embedding"], tokens, atol=1e-5)


def test_unknown_modules_are_refused(copied: Any, load: Any) -> None:
    folder = copied("minilm")
    modules = json.loads((folder / "modules.json").read_bytes())
    modules[2]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelLoadError, match='expected Transformer, Pooling, Dense and Normalize, got "sentence_tr'):
        load(folder)


def test_code_of_a_dense_layer_is_not_imported(saved: Any, load: Any, tmp_path: Path) -> None:
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Pooling

    _save(saved("embeddings_of_a_bare_model"), tmp_path, Pooling(32), Dense(32, 16))
    (config,) = tmp_path.glob("2_Dense/config.json")
    config.write_text(config.read_text().replace("torch.nn.modules.activation.Tanh", "os.system"))
    with pytest.raises(ModelLoadError, match=r"a dense layer with os\.system is not known here"):
        load(tmp_path)
