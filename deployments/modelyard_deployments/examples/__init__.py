# SPDX-License-Identifier: Apache-2.0
"""Trains the example models that the configurations and the README serve.

Run ``python -m modelyard_deployments.examples [DIR] [NAME ...]``. Uses the data scikit-learn carries and
generated tables, fixed seeds, no network. Models that exist are left alone, and when all do no library is imported.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from modelyard_deployments.examples import (
    custom,
    huggingface,
    mlflow,
    onnx,
    paddle,
    pmml,
    pytorch,
    tables,
    tensorflow,
    triton,
)
from modelyard_deployments.examples.example import Example

_MODULES: Final[tuple[ModuleType, ...]] = (
    tables,
    mlflow,
    onnx,
    pytorch,
    tensorflow,
    paddle,
    pmml,
    custom,
    triton,
    huggingface,
)
"""Each trains in a process of its own: some of their libraries cannot be imported into one."""

EXAMPLES: Final[Mapping[str, Example]] = {name: one for module in _MODULES for name, one in module.EXAMPLES.items()}

PLATFORM: Final = tuple(tables.EXAMPLES)
"""Names of the models of ``configs/platform.yaml``."""

FRAMEWORKS: Final = tuple(name for name in EXAMPLES if name not in huggingface.EXAMPLES)
"""Names of the models of ``configs/frameworks.yaml``; the others come in packages of their own."""


def find_missing(directory: Path, names: Sequence[str]) -> list[str]:
    """Those of the models that are not in the directory yet."""
    return [name for name in names if not (directory / name / EXAMPLES[name].file).exists()]


def make_examples(directory: Path, names: Sequence[str] = PLATFORM) -> list[Path]:
    """Trains the models that are missing in the directory, here; returns the files it wrote.

    A file appears whole or not at all: it is written beside its place and renamed.
    """
    written = []
    for name in find_missing(directory, names):
        example = EXAMPLES[name]
        target = directory / name / example.file
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".train-") as scratch:
            draft = Path(scratch) / "draft" / example.file
            draft.parent.mkdir(exist_ok=True)
            example.train(draft)
            draft.replace(target)
        written.append(target)
    return written


def make_examples_apart(directory: Path, names: Sequence[str]) -> list[Path]:
    """As :func:`make_examples`, each library's models in a process of its own."""
    written: list[Path] = []
    for module in _MODULES:
        if missing := find_missing(directory, [name for name in names if name in module.EXAMPLES]):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                written += pool.apply(make_examples, (directory, missing))
    return written
