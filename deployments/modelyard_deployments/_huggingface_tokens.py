# SPDX-License-Identifier: Apache-2.0
"""What a model says of single tokens: entities in a text, and what stands in the place of a mask."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Model
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._huggingface_encoder import Place, TextEncoder, find_batch_tokens
from modelyard_deployments._huggingface_load import Loaded
from modelyard_deployments._huggingface_options import HuggingFaceOptions
from modelyard_deployments._huggingface_scores import softmax, to_labels
from modelyard_deployments._huggingface_values import read_count, read_parameter, to_json_array, to_texts

_TEXT: Final = "text"
_FILLINGS: Final = 5
_NUMBERS: Final = 2**26
"""Logits of one batch, a quarter of a gigabyte."""
_STRATEGIES: Final = ("none", "simple", "first", "average", "max")


class TokenClassification(Model):
    """Entities with their places in the text; transformers' own pipeline joins the tokens."""

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        from transformers.pipelines.token_classification import TokenClassificationPipeline

        self._encoder = TextEncoder(loaded, options)
        if not self._encoder.tokenizer.is_fast:
            raise ModelLoadError("task token-classification: expected tokenizer.json, which tells where a token stands")
        self._pipeline = TokenClassificationPipeline(
            model=loaded.model, tokenizer=self._encoder.tokenizer, device=loaded.model.device
        )
        self._strategy = options.aggregation_strategy
        self._ignored = list(options.ignore_labels)
        self._labels = to_labels(loaded.config)
        self._signature = Signature(
            inputs=(TensorSpec(_TEXT, "BYTES", (-1,)),),
            outputs=(TensorSpec("entities", "BYTES", (-1,), content_type="json"),),
            on_request=(TensorSpec("tokens", "BYTES", (-1,), content_type="json"),),
            any_input_name=True,
            example={_TEXT: "Ada Lovelace was born in London."},
        )

    @property
    def signature(self) -> Signature:
        """``text``; ``entities``, a list for each row, and when asked for ``tokens`` with the scores of all labels."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Finds entities.

        Raises:
            InvalidRequest: A text is too long, or there is no such ``aggregation_strategy``.
        """
        texts = to_texts(_TEXT, inputs[_TEXT])
        strategy = read_parameter(parameters, "aggregation_strategy", str, self._strategy)
        if strategy not in _STRATEGIES:
            raise InvalidRequest(
                f'parameter "aggregation_strategy": expected one of {", ".join(_STRATEGIES)}, got "{strategy}"'
            )
        with self._encoder.lock:
            encoded = self._encoder.tokenize(
                f'input "{_TEXT}"', texts, return_offsets_mapping=True, return_special_tokens_mask=True
            )
            logits = self._encoder.run(self._encoder.to_rows(encoded), _take_all)
            answers = {}
            if "entities" in outputs:
                found = [self._join(text, encoded, row, logits[row], strategy) for row, text in enumerate(texts)]
                answers["entities"] = to_json_array(found)
            if "tokens" in outputs:
                answers["tokens"] = to_json_array(
                    [self._list(text, encoded, row, logits[row]) for row, text in enumerate(texts)]
                )
        return answers

    def _join(self, text: str, encoded: Any, row: int, logits: Any, strategy: str) -> list[Mapping[str, Any]]:
        import torch
        from transformers.pipelines.token_classification import AggregationStrategy

        outputs = {
            "logits": logits[None],
            "sentence": text,
            "input_ids": [encoded["input_ids"][row]],
            "offset_mapping": [encoded["offset_mapping"][row]],
            "special_tokens_mask": torch.tensor([encoded["special_tokens_mask"][row]]),
            "word_ids": None,
        }
        with warnings.catch_warnings():
            # That a tokenizer has no words of its own is in the documentation; it is said once for each token.
            warnings.simplefilter("ignore", UserWarning)
            entities: list[Mapping[str, Any]] = self._pipeline.postprocess(
                [outputs], AggregationStrategy(strategy), self._ignored
            )
        return entities

    def _list(self, text: str, encoded: Any, row: int, logits: Any) -> list[Mapping[str, Any]]:
        scores = softmax(logits.numpy())
        tokens: list[Mapping[str, Any]] = []
        for index, (start, end) in enumerate(encoded["offset_mapping"][row]):
            if not encoded["special_tokens_mask"][row][index]:
                named = dict(zip(self._labels, scores[index].tolist(), strict=True))
                tokens.append({"word": text[start:end], "start": start, "end": end, "scores": named})
        return tokens


def _take_all(outputs: Any, place: Place) -> Any:
    """One row's logits without those of the padding, a tensor ``[tokens, classes]`` on the CPU."""
    return outputs.logits[place.index, : place.length].float().cpu().clone()


def _take_some(outputs: Any, place: Place, tokens: list[int]) -> Array:
    """Probabilities of the whole vocabulary for some of a row's tokens, FP32 ``[tokens, vocabulary]``."""
    return softmax(outputs.logits[place.index, tokens].float().numpy(force=True))


class FillMask(Model):
    """Tokens for the place of a mask.

    Source: transformers ``pipelines/fill_mask.py``.
    """

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        # A batch has a number for each word of the vocabulary and each token.
        most = max(1, min(find_batch_tokens(options, loaded.device), _NUMBERS // loaded.config.vocab_size))
        self._encoder = TextEncoder(loaded, options.model_copy(update={"max_batch_tokens": most}))
        self._tokenizer = self._encoder.tokenizer
        if self._tokenizer.mask_token is None:
            raise ModelLoadError("task fill-mask: expected a tokenizer with a mask token, got one without")
        self._vocabulary = loaded.config.vocab_size
        self._top_k = self._vocabulary if options.top_k == "all" else options.top_k or _FILLINGS
        self._signature = Signature(
            inputs=(TensorSpec(_TEXT, "BYTES", (-1,)),),
            outputs=(TensorSpec("fillings", "BYTES", (-1,), content_type="json"),),
            any_input_name=True,
            example={_TEXT: f"Paris is the {self._tokenizer.mask_token} of France."},
        )

    @property
    def signature(self) -> Signature:
        """``text`` with a mask; ``fillings``, a list for each row, or a list for each mask where a row has several."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Fills the masks.

        Raises:
            InvalidRequest: A text has no mask (within the length that is not cut), or there are no such ``targets``.
        """
        top_k = min(read_count(parameters, "top_k", self._top_k), self._vocabulary)
        targets = self._find_targets(read_parameter(parameters, "targets", str, ""))
        mask = self._tokenizer.mask_token_id
        with self._encoder.lock:
            encoded = self._encoder.tokenize(f'input "{_TEXT}"', to_texts(_TEXT, inputs[_TEXT]))
            rows = self._encoder.to_rows(encoded)
            places = [[i for i, token in enumerate(row["input_ids"]) if token == mask] for row in rows]
            for row, found in enumerate(places):
                if not found:
                    raise InvalidRequest(
                        f'input "{_TEXT}"[{row}]: expected a mask, {self._tokenizer.mask_token}, got none'
                    )
            scores = self._encoder.run(rows, lambda outputs, at: _take_some(outputs, at, places[at.row]))
            filled = [
                self._fill(row["input_ids"], found, chances, top_k, targets)
                for row, found, chances in zip(rows, places, scores, strict=True)
            ]
        return {"fillings": to_json_array(filled)}

    def _find_targets(self, listed: str) -> list[int]:
        """Ids of the tokens that are to be compared; none where all are."""
        vocabulary = self._tokenizer.get_vocab() if listed else {}
        targets = [name.strip() for name in listed.split(",") if name.strip()]
        unknown = [name for name in targets if name not in vocabulary]
        if unknown:
            raise InvalidRequest(f'parameter "targets": {", ".join(unknown[:5])}: no such token in the vocabulary')
        return sorted({vocabulary[name] for name in targets})

    def _fill(self, ids: list[int], places: list[int], scores: Array, top_k: int, targets: list[int]) -> Any:
        """The best tokens for each place; without a list around it where there is one place."""
        filled = []
        for place, all_scores in zip(places, scores, strict=True):
            tokens = np.array(targets) if targets else np.arange(len(all_scores))
            best = tokens[np.argsort(-all_scores[tokens], kind="stable")[:top_k]]
            filled.append(
                [self._to_filling(ids, place, len(places) == 1, token, all_scores) for token in best.tolist()]
            )
        return filled[0] if len(filled) == 1 else filled

    def _to_filling(self, ids: list[int], place: int, is_only: bool, token: int, scores: Array) -> dict[str, Any]:
        written = [*ids[:place], token, *ids[place + 1 :]]
        kept = [one for one in written if one != self._tokenizer.pad_token_id]
        return {
            "score": float(scores[token]),
            "token": token,
            "token_str": self._tokenizer.decode([token]),
            "sequence": self._tokenizer.decode(kept, skip_special_tokens=is_only),
        }
