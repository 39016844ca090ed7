# SPDX-License-Identifier: Apache-2.0
"""Files of YAML, read as far as that they are it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from modelyard.errors import InvalidConfig


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own would forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f'the key "{key.value}" again', key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, key: str) -> Mapping[str, Any]:
    """The mapping in a YAML file, which should have this key.

    Raises:
        InvalidConfig: The file cannot be read, is not YAML, or holds something else.
    """
    document = parse_yaml(_read(path), str(path))
    if not isinstance(document, Mapping):
        raise InvalidConfig((f"{path}: expected a mapping with the key {key}",))
    return document


def read_documents(path: Path) -> tuple[Any, ...]:
    """The documents of a YAML file, without empty ones.

    Raises:
        InvalidConfig: The file cannot be read, or is not YAML.
    """
    return tuple(document for document in _parse(_read(path), str(path)) if document is not None)


def parse_yaml(text: str, where: str) -> Any:
    """The one document in a text.

    Args:
        text: YAML.
        where: What a message says of its place.

    Raises:
        InvalidConfig: It is not YAML, or several documents.
    """
    documents = _parse(text, where)
    if len(documents) > 1:
        raise InvalidConfig((f"{where}: expected one document, got {len(documents)}",))
    return documents[0] if documents else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise InvalidConfig((f"{path}: cannot be read: {exc.strerror}",)) from exc
    except UnicodeDecodeError as exc:
        raise InvalidConfig((f"{path}: is not YAML: {exc}",)) from exc


def _parse(text: str, where: str) -> list[Any]:
    try:
        return list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidConfig((f"{where}: is not YAML{line}: {getattr(exc, 'problem', None) or exc}",)) from exc
