# SPDX-License-Identifier: Apache-2.0
"""Files of YAML, read as far as that they are it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from modelyard.errors import InvalidConfig


def read_yaml(path: Path, key: str) -> Mapping[str, Any]:
    """The mapping in a YAML file, which should have this key.

    Raises:
        InvalidConfig: The file cannot be read, is not YAML, or holds something else.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InvalidConfig((f"{path}: cannot be read: {exc.strerror}",)) from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        where = getattr(exc, "problem_mark", None)
        line = f" in line {where.line + 1}, column {where.column + 1}" if where else ""
        raise InvalidConfig((f"{path}: is not YAML{line}: {getattr(exc, 'problem', None) or exc}",)) from exc
    if not isinstance(document, Mapping):
        raise InvalidConfig((f"{path}: expected a mapping with the key {key}",))
    return document
