# SPDX-License-Identifier: Apache-2.0
"""Models of the cases, saved once in a session and loaded with any options."""

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from modelyard.model import Model, load_model
from modelyard.protocol import v1
from modelyard.tensor import Tensors

pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def saved(trainers: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case's model."""

    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        trainers("huggingface")[name](folder)
        return folder

    return save


@pytest.fixture
def copied(saved: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """The same, to be changed."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(saved(name), tmp_path / name))

    return copy


@pytest.fixture
def load(saved: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    """``load(case, **options)``; a path in place of the case is loaded itself."""
    loaded: list[Model] = []

    def load_it(case: str | Path, **options: Any) -> Model:
        loaded.append(load_model("huggingface", saved(case) if isinstance(case, str) else case, options))
        return loaded[-1]

    yield load_it
    for model in loaded:
        model.close()


@pytest.fixture
def predict() -> Callable[..., dict[str, Any]]:
    """``predict(model, body, outputs, **parameters)``: a body of v1, and all or some of the outputs."""

    def ask(model: Model, body: bytes, outputs: tuple[str, ...] = (), **parameters: Any) -> dict[str, Any]:
        request, _ = v1.decode_predict(body, model.signature)
        names = outputs or tuple(spec.name for spec in model.signature.outputs)
        answers: Tensors = model.predict(model.signature.bind(request.inputs), names, parameters)  # type: ignore[assignment]
        return dict(answers)

    return ask
