# SPDX-License-Identifier: Apache-2.0
"""Embeddings of texts: one vector for each, or one for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.model import Model
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._huggingface_encoder import Place, TextEncoder
from modelyard_deployments._huggingface_load import Loaded
from modelyard_deployments._huggingface_options import HuggingFaceOptions
from modelyard_deployments._huggingface_sentences import Recipe, pool, read_recipe
from modelyard_deployments._huggingface_values import read_parameter, to_json_array, to_texts

_TEXT: Final = "text"
_EMBEDDING: Final = "embedding"
_TOKENS: Final = "token_embeddings"

Tokens = Mapping[str, list[int]]
"""What the model takes of one text."""


class Embedder:
    """A model and what is made of its token embeddings.

    Attributes:
        encoder: Tokens and forward passes.
        recipe: How one embedding is made.
        dimensions: Its length.
        is_matryoshka: Its first dimensions alone are embeddings, too.
    """

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions) -> None:
        self.recipe: Recipe = read_recipe(loaded.folder, options, loaded.device)
        self.encoder = TextEncoder(loaded, options, self.recipe.max_length)
        config = loaded.folder.config
        said = bool(config.get("is_matryoshka") or config.get("matryoshka_dimensions"))
        self.is_matryoshka = said if options.matryoshka is None else options.matryoshka
        self.allowed_dimensions: tuple[int, ...] = tuple(config.get("matryoshka_dimensions") or ())
        self._prompt_lengths = {name: self._count_prompt(text) for name, text in self.recipe.prompts.items()}
        self.dimensions = int(self.embed(self.tokenize("text", ["a"], None)).shape[1])

    def get_prompt(self, name: str | None) -> str:
        """What to put before each text.

        Args:
            name: Of the folder's prompts; None takes its default.

        Raises:
            InvalidRequest: It has none of that name.
        """
        name = name or self.recipe.prompt_name
        if name is None:
            return ""
        if name not in self.recipe.prompts:
            names = ", ".join(self.recipe.prompts) or "none"
            raise InvalidRequest(f'prompt_name: the model has the prompts {names}, got "{name}"')
        return self.recipe.prompts[name]

    def tokenize(self, where: str, texts: Sequence[str], prompt_name: str | None, **settings: Any) -> list[Tokens]:
        """The tokens of each text behind its prompt.

        Raises:
            InvalidRequest: A text is too long where it is not cut, or there is no such prompt.
        """
        prompt = self.get_prompt(prompt_name)
        whole = [prompt + text for text in texts] if prompt else texts
        if self.recipe.lowers_case:
            whole = [text.lower() for text in whole]
        with self.encoder.lock:
            return list(self.encoder.to_rows(self.encoder.tokenize(where, whole, **settings)))

    def count_skipped(self, prompt_name: str | None) -> int:
        """Tokens at the beginning of each text that are left out of its embedding."""
        name = prompt_name or self.recipe.prompt_name
        return 0 if self.recipe.includes_prompt or name is None else self._prompt_lengths.get(name, 0)

    def embed(self, rows: Sequence[Tokens], skipped: int | Sequence[int] = 0) -> Array:
        """FP32 ``[rows, dimensions]``.

        Args:
            rows: Tokens of each text.
            skipped: As :meth:`count_skipped` says, for all or for each row.
        """
        import torch

        skips = [skipped] * len(rows) if isinstance(skipped, int) else skipped
        with self.encoder.lock, torch.inference_mode():
            embedded = torch.stack(
                self.encoder.run(
                    rows, lambda outputs, at: pool(_take_tokens(outputs, at), self.recipe.pooling, skips[at.row])
                )
            )
            for layer in self.recipe.layers:
                embedded = layer(embedded)
            if self.recipe.normalizes:
                embedded = torch.nn.functional.normalize(embedded, dim=-1)
            array: Array = embedded.numpy(force=True)
        return array

    def embed_tokens(self, rows: Sequence[Tokens]) -> list[Array]:
        """FP32 ``[tokens, dimensions]`` of each text, as the model gives them."""
        with self.encoder.lock:
            return self.encoder.run(rows, lambda outputs, at: _take_tokens(outputs, at).numpy(force=True).copy())

    def _count_prompt(self, prompt: str) -> int:
        """Its tokens, with those that stand before every text and without the one that ends it."""
        tokenizer = self.encoder.tokenizer
        ids = tokenizer(prompt)["input_ids"]
        return len(ids) - (1 if ids and ids[-1] in tokenizer.all_special_ids else 0)


def _take_tokens(outputs: Any, place: Place) -> Any:
    """One row's last hidden states without padding."""
    return outputs.last_hidden_state[place.index, : place.length].float()


def cut(embeddings: Array, dimensions: int) -> Array:
    """The first dimensions, with the length 1 again."""
    kept = embeddings[:, :dimensions]
    norms: Array = np.linalg.norm(kept, axis=1, keepdims=True)
    short: Array = kept / np.maximum(norms, 1e-12)
    return short


class FeatureExtraction(Model):
    """Embeddings in v1 and v2."""

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        self.embedder = Embedder(loaded, options)
        self._signature = Signature(
            inputs=(TensorSpec(_TEXT, "BYTES", (-1,)),),
            outputs=(TensorSpec(_EMBEDDING, "FP32", (-1, self.embedder.dimensions)),),
            on_request=(TensorSpec(_TOKENS, "BYTES", (-1,), content_type="json"),),
            any_input_name=True,
            example={_TEXT: "The cat sits outside."},
        )

    @property
    def signature(self) -> Signature:
        """``text``; ``embedding``, and when asked for ``token_embeddings``, a list of vectors for each row."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Embeds texts.

        Raises:
            InvalidRequest: A text is too long where it is not cut, or there is no such ``prompt_name``.
        """
        prompt_name = read_parameter(parameters, "prompt_name", str, "") or None
        rows = self.embedder.tokenize(f'input "{_TEXT}"', to_texts(_TEXT, inputs[_TEXT]), prompt_name)
        answers: dict[str, Array] = {}
        if _EMBEDDING in outputs:
            answers[_EMBEDDING] = self.embedder.embed(rows, self.embedder.count_skipped(prompt_name))
        if _TOKENS in outputs:
            answers[_TOKENS] = to_json_array(self.embedder.embed_tokens(rows))
        return answers
