# SPDX-License-Identifier: Apache-2.0
"""``metadata``: what the RayService's own definition leaves open and every API server checks all the same.

Source: Kubernetes ``apimachinery/pkg/apis/meta/v1`` (ObjectMeta) and ``apimachinery/pkg/util/validation``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from modelyard.config.problems import join_path, shown

_TEXT: Final = {"type": "string"}
_TIME: Final = {"type": "string", "format": "date-time"}
_PAIRS: Final = {"type": "object", "additionalProperties": _TEXT}
SHAPE: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": _TEXT,
        "namespace": _TEXT,
        "labels": _PAIRS,
        "annotations": _PAIRS,
        "finalizers": {"type": "array", "items": _TEXT},
        "ownerReferences": {"type": "array", "items": {"type": "object"}},
        # What an API server adds, as in the output of `kubectl get`.
        "uid": _TEXT,
        "resourceVersion": _TEXT,
        "generation": {"type": "integer"},
        "creationTimestamp": _TIME | {"nullable": True},
        "deletionTimestamp": _TIME,
        "deletionGracePeriodSeconds": {"type": "integer"},
        "managedFields": {"type": "array", "items": {"type": "object"}},
        "generateName": _TEXT,
        "selfLink": _TEXT,
    },
}
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DOMAIN: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
LABEL: Final = "a text of at most 63 letters, digits, ., _ and -, with a letter or digit at each end"
_MAX_ANNOTATIONS_BYTES: Final = 256 * 1024


def is_key(key: str) -> bool:
    """Whether it can be the key of a label or an annotation: ``example.com/name``."""
    prefix, slash, name = key.rpartition("/")
    return _NAME.fullmatch(name) is not None and (not slash or _DOMAIN.fullmatch(prefix) is not None)


def is_label(value: str) -> bool:
    """Whether it can be the value of a label."""
    return not value or _NAME.fullmatch(value) is not None


def check_pairs(pairs: Mapping[Any, Any], path: str) -> Iterator[str]:
    """What is wrong with labels, annotations or a selector of nodes.

    Args:
        pairs: What is a text by itself is looked at, nothing else.
        path: Of them; its last part says which of these they are.
    """
    texts = {key: value for key, value in pairs.items() if isinstance(key, str) and isinstance(value, str)}
    for key, value in texts.items():
        where = join_path(path, key)
        if not is_key(key):
            yield f"{where}: expected a key as example.com/name: {LABEL}, got {shown(key, '')}"
        elif path.endswith(("labels", "nodeSelector")) and not is_label(value):
            yield f"{where}: expected {LABEL}, got {shown(value, '')}"
    if sum(len(key.encode()) + len(value.encode()) for key, value in texts.items()) > _MAX_ANNOTATIONS_BYTES:
        yield f"{path}: expected at most {_MAX_ANNOTATIONS_BYTES} bytes"
