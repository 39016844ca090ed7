# SPDX-License-Identifier: Apache-2.0
"""From texts to a model's answers: tokens, batches of like length, padding, one forward pass for each batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard_deployments._huggingface_batches import plan_batches
from modelyard_deployments._huggingface_load import Loaded, load_part, named
from modelyard_deployments._huggingface_options import HuggingFaceOptions

T = TypeVar("T")
_UNLIMITED: Final = 10**9
"""``model_max_length`` of a tokenizer that does not know; transformers' own number has thirty digits."""
_BATCH_TOKENS: Final = 1024
"""256 texts of 3 to 120 words on MiniLM, one core: 5.7 s in batches of 512 to 1024 tokens, 7.4 s in those of 8192."""
_GPU_BATCH_TOKENS: Final = 16384
_COUNTED_FROM_PADDING: Final = ("roberta", "camembert", "mpnet", "longformer", "data2vec-text", "esm", "luke", "ibert")
"""Types of models, or their endings, that number positions from the padding's id on, so that two of them are unused."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is while it is computed.

    Attributes:
        row: Its number among all rows.
        index: Its number in its batch.
        length: Its tokens; those behind them are padding.
    """

    row: int
    index: int
    length: int


class TextEncoder:
    """A tokenizer and its model.

    One call at a time: tokenizers keep their settings in themselves.

    Attributes:
        tokenizer: Of transformers; it pads on the right, where no token before can see it.
        max_length: Tokens of one text; None where there is no limit.
        lock: Held during a call.
    """

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, max_length: int | None = None) -> None:
        self.loaded = loaded
        self.tokenizer = load_part(loaded.folder, "AutoTokenizer", "the tokenizer", options)
        self.tokenizer.padding_side = "right"
        self.max_length = find_max_length(self.tokenizer, loaded.config, options.max_length, max_length)
        self.lock = threading.RLock()
        self._truncates = options.truncation
        self._max_batch_tokens = find_batch_tokens(options, loaded.device)
        self._names = named(loaded.model.forward)
        padding = self.tokenizer.pad_token_id
        # Models find the end of a text, or number its positions, by the padding's id: both have to mean the same.
        self._can_pad = padding is not None and padding == getattr(loaded.config, "pad_token_id", None)

    def tokenize(
        self,
        where: str,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        cut: str = "longest_first",
        limit: int | None = None,
        **settings: Any,
    ) -> Any:
        """The tokens of each text, or of each pair, as transformers' ``BatchEncoding`` of lists.

        Args:
            where: The input, for messages.
            texts: One for each row.
            pairs: The second text of each row.
            cut: Which of a pair is cut, in transformers' words.
            limit: Tokens to cut to; 0 cuts nothing, None does as the option ``truncation`` says.
            settings: Of the tokenizer.

        Raises:
            InvalidRequest: A text is too long, or has no tokens.
        """
        if limit is None:
            limit = self.max_length if self._truncates else 0
        truncation: str | bool = cut if limit else False
        if limit:
            settings["max_length"] = limit
        try:
            encoded = self.tokenizer(
                list(texts), None if pairs is None else list(pairs), truncation=truncation, **settings
            )
        except Exception as exc:  # the tokenizers library raises plain exceptions
            if "Truncation error" not in str(exc) and "too short" not in str(exc):
                raise
            raise InvalidRequest(f"{where}: one text alone is longer than {limit} tokens") from exc
        self.check_lengths(where, [len(ids) for ids in encoded["input_ids"]])
        return encoded

    def check_lengths(self, where: str, lengths: Sequence[int]) -> None:
        """Refuses rows without tokens, and those that the model cannot take.

        Raises:
            InvalidRequest: As said.
        """
        for row, length in enumerate(lengths):
            if not length:
                raise InvalidRequest(f"{where}[{row}]: the text has no tokens")
            if self.max_length is not None and length > self.max_length:
                raise InvalidRequest(
                    f"{where}[{row}]: expected at most {self.max_length} tokens, got {length}: "
                    "please reduce the length of the input"
                )

    def to_rows(self, encoded: Any) -> list[dict[str, list[int]]]:
        """What of the tokens the model takes, by row."""
        own = self.tokenizer.model_input_names
        # A class of the artifact's own may name none of its arguments.
        names = [name for name in encoded if name in self._names] or [name for name in encoded if name in own]
        return [
            dict(zip(names, values, strict=True)) for values in zip(*(encoded[name] for name in names), strict=True)
        ]

    def run(self, rows: Sequence[Mapping[str, list[int]]], take: Callable[[Any, Place], T]) -> list[T]:
        """One answer for each row, in their order.

        Args:
            rows: Of :meth:`to_rows`.
            take: Makes a row's answer of what the model gave its batch, which is let go of then.
        """
        answers: dict[int, T] = {}
        for batch, inputs in self.batches(rows):
            outputs = self.forward(inputs)
            for index, row in enumerate(batch):
                answers[row] = take(outputs, Place(row, index, len(rows[row]["input_ids"])))
        return [answers[row] for row in range(len(rows))]

    def batches(self, rows: Sequence[Mapping[str, list[int]]]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Numbers of rows and their tensors, padded, on the model's device."""
        lengths = [len(row["input_ids"]) for row in rows]
        for batch in plan_batches(lengths, self._max_batch_tokens, self._can_pad):
            yield batch, self._to_tensors([rows[row] for row in batch])

    def forward(self, inputs: Mapping[str, Any]) -> Any:
        """One pass without gradients."""
        import torch

        extra = {"use_cache": False} if "use_cache" in self._names else {}
        with torch.inference_mode():
            return self.loaded.model(**inputs, **extra)

    def _to_tensors(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        values = {
            "input_ids": self.tokenizer.pad_token_id or 0,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        return {
            name: torch.tensor(
                [row[name] + [values.get(name, 0)] * (longest - len(row[name])) for row in rows],
                device=self.loaded.device,
            )
            for name in rows[0]
        }


def find_batch_tokens(options: HuggingFaceOptions, device: str) -> int:
    """Tokens of one batch, by the option or as measured."""
    return options.max_batch_tokens or (_BATCH_TOKENS if device == "cpu" else _GPU_BATCH_TOKENS)


def find_max_length(tokenizer: Any, config: Any, wanted: int | None, own: int | None) -> int | None:
    """Tokens that one text may have.

    Args:
        tokenizer: What it says holds where neither of the last two does.
        config: The model's; its number of positions is the utmost.
        wanted: By the option.
        own: By what else is in the folder.

    Raises:
        ModelLoadError: More are wanted than the model has positions.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        counted = str(getattr(config, "model_type", "")).endswith(_COUNTED_FROM_PADDING)
        positions -= (getattr(config, "pad_token_id", None) or 0) + 1 if counted else 0
    else:
        positions = None
    if wanted is not None and positions is not None and wanted > positions:
        raise ModelLoadError(f"option max_length: the model has {positions} positions, got {wanted}")
    said = tokenizer.model_max_length
    limits = [wanted or own or (said if said < _UNLIMITED else None), positions]
    return min((int(limit) for limit in limits if limit), default=None)
