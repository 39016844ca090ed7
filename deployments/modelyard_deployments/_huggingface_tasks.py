# SPDX-License-Identifier: Apache-2.0
"""Tasks of Hugging Face models: their names, and which one the classes in a ``config.json`` are for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

PREDICTIVE: Final = (
    "text-classification",
    "token-classification",
    "fill-mask",
    "feature-extraction",
    "question-answering",
    "zero-shot-classification",
    "summarization",
    "translation",
    "image-classification",
    "object-detection",
    "automatic-speech-recognition",
)
GENERATIVE: Final = ("text-generation", "text2text-generation", "image-text-to-text")
TASKS: Final = (*PREDICTIVE, *GENERATIVE)

_ALIASES: Final = {
    "sentiment-analysis": "text-classification",
    "sequence-classification": "text-classification",
    "ner": "token-classification",
    "embeddings": "feature-extraction",
    "sentence-similarity": "feature-extraction",
    "text-embedding": "feature-extraction",
    "asr": "automatic-speech-recognition",
}
_TRANSLATION: Final = re.compile(r"translation(_\w+_to_\w+)?")

_MAPPINGS: Final = (
    ("text-classification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    ("token-classification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"),
    ("question-answering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"),
    ("image-classification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    ("object-detection", "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES"),
    ("automatic-speech-recognition", "MODEL_FOR_CTC_MAPPING_NAMES"),
    ("text-generation", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    # BART and its like write text, and can fill masks as well.
    ("text2text-generation", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    ("automatic-speech-recognition", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"),
    ("image-text-to-text", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
    ("fill-mask", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    ("feature-extraction", "MODEL_MAPPING_NAMES"),
)
"""transformers' own tables of classes, by task; the first that has the class decides."""

_ENDINGS: Final = (
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
    ("ForImageClassification", "image-classification"),
    ("ForObjectDetection", "object-detection"),
    ("ForCTC", "automatic-speech-recognition"),
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("ForConditionalGeneration", "text2text-generation"),
    ("Model", "feature-extraction"),
)
"""What names of classes end in, for classes that transformers does not have: new ones, and an artifact's own."""


def to_task(name: str) -> str:
    """The task of that name: one of :data:`TASKS`, or ``translation_en_to_de``.

    Raises:
        ValueError: There is none.
    """
    if _TRANSLATION.fullmatch(name):
        return name
    plain = name.strip().lower().replace("_", "-")
    plain = _ALIASES.get(plain, plain)
    if plain not in TASKS:
        raise ValueError(f'expected one of {", ".join(TASKS)}, got "{name}"')
    return plain


def infer_task(architectures: Sequence[str]) -> str | None:
    """The task of the first class that is known; None where none is."""
    from transformers.models.auto import modeling_auto

    for name in architectures:
        for task, table in _MAPPINGS:
            if name in _flatten(getattr(modeling_auto, table, {}).values()):
                return task
    for name in architectures:
        for ending, task in _ENDINGS:
            if name.endswith(ending):
                return task
    return None


def _flatten(values: object) -> set[str]:
    names: set[str] = set()
    for value in values:  # type: ignore[attr-defined]  # tables of strings and tuples of strings
        names |= {value} if isinstance(value, str) else set(value)
    return names
