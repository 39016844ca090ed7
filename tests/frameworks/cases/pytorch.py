# SPDX-License-Identifier: Apache-2.0
"""PyTorch: each function saves one program into a folder and says what the module itself answers."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from modelyard.tensor import to_bytes_array
from modelyard.testing import Case

_TOLERANCE = 1e-5


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Dictionary(_Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.layers(x)
        return {"scores": scores, "best": scores.argmax(dim=-1)}


class _Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.words = nn.Embedding(50, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        words = self.words(ids) * mask.unsqueeze(-1)
        return words, {"vector": words.sum(dim=1)}


class _Texts(nn.Module):
    def forward(self, texts: list[str], suffix: str = "!") -> tuple[list[str], Tensor]:
        return [text + suffix for text in texts], torch.tensor([len(text) for text in texts])


class _InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class _Same(nn.Module):
    def forward(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{name}_out": value for name, value in values.items()}


class _Ranks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(dim=0)


class _Scaled(nn.Module):
    def forward(self, x: Tensor, bias: Tensor | None = None, factor: float = 2.0) -> Tensor:
        return x * factor if bias is None else x * factor + bias


def _rows() -> Any:
    return np.random.default_rng(0).random((5, 4)).astype(np.float32)


def _trace(module: nn.Module, folder: Path, *examples: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
        torch.jit.trace(module.eval(), examples).save(folder / "model.pt")


def _script(module: nn.Module, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
        torch.jit.script(module).save(folder / "model.pt")


def _export(module: nn.Module, folder: Path, *examples: Any, **dynamic: Any) -> None:
    program = torch.export.export(module.eval(), examples, dynamic_shapes=dynamic or None)
    torch.export.save(program, folder / "model.pt2")


def _ask(module: nn.Module, *arrays: Any) -> Any:
    with torch.no_grad():
        return module.eval()(*[torch.from_numpy(array.copy()) for array in arrays])


def exported(folder: Path) -> Case:
    _export(_Net(), folder, torch.ones(2, 4), x={0: Dim("batch")})
    return Case({"x": _rows()}, {"output-0": _ask(_Net(), _rows()).numpy()}, rtol=_TOLERANCE)


def exported_dictionary(folder: Path) -> Case:
    _export(_Dictionary(), folder, torch.ones(2, 4), x={0: Dim.DYNAMIC})
    answers = _ask(_Dictionary(), _rows())
    return Case({"x": _rows()}, {name: answer.numpy() for name, answer in answers.items()}, rtol=_TOLERANCE)


def exported_tokens_of_any_length(folder: Path) -> Case:
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    _export(_Tokens(), folder, torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5), ids=sizes, mask=sizes)
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 50, (4, 6)), rng.integers(0, 2, (4, 6)).astype("f")
    words, more = _ask(_Tokens(), ids, mask)
    expected = {"output-0": words.numpy(), "output-1.vector": more["vector"].numpy()}
    return Case({"ids": ids, "mask": mask}, expected, rtol=_TOLERANCE)


def exported_with_fixed_arguments(folder: Path) -> Case:
    module = _Scaled().eval()
    sizes = {"x": {0: Dim.DYNAMIC}, "bias": None, "factor": None}
    program = torch.export.export(module, (torch.ones(2, 4),), {"bias": None, "factor": 3.0}, dynamic_shapes=sizes)
    torch.export.save(program, folder / "model.pt2")
    return Case({"x": _rows()}, {"output-0": _rows() * 3})


def exported_with_name_of_a_builtin(folder: Path) -> Case:
    _export(nn.Sequential(nn.ReLU()), folder, torch.ones(2, 4), input={0: Dim.DYNAMIC})
    return Case({"input": _rows()}, {"output-0": _rows()})


def exported_fixed_size(folder: Path) -> Case:
    _export(_Net(), folder, torch.ones(2, 4))
    return Case({"x": _rows()[:2]}, {"output-0": _ask(_Net(), _rows()[:2]).numpy()}, rtol=_TOLERANCE)


def exported_of_every_datatype(folder: Path) -> Case:
    import ml_dtypes

    names = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32"]
    names += ["float64", "bfloat16"]
    examples = {name: torch.ones(2, 3, dtype=getattr(torch, name)) for name in names}
    dynamic = {name: {0: Dim.DYNAMIC} for name in names}
    _export(_Same(), folder, examples, values=dynamic)
    rows = {}
    for name in names:
        dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
        largest = np.iinfo(dtype).max if dtype.kind in "iu" else 1
        rows[name] = np.array([[0, 1, largest], [largest, 1, 0], [1, 1, 1]], dtype=dtype)
    inputs = {f"values_{name}": array for name, array in rows.items()}
    return Case(inputs, {f"{name}_out": array for name, array in rows.items()})


def exported_that_writes_to_its_input(folder: Path) -> Case:
    _export(_InPlace(), folder, torch.ones(2, 4), x={0: Dim.DYNAMIC})
    return Case({"x": _rows()}, {"output-0": _rows() * 2})


def traced(folder: Path) -> Case:
    _trace(_Net(), folder, torch.ones(2, 4))
    return Case({"x": _rows()}, {"output-0": _ask(_Net(), _rows()).numpy()}, rtol=_TOLERANCE)


def traced_image(folder: Path) -> Case:
    _trace(_Image(), folder, torch.ones(1, 3, 16, 16))
    images = np.random.default_rng(0).random((3, 3, 16, 16)).astype("f")
    return Case({"image": images}, {"output-0": _ask(_Image(), images).numpy()}, rtol=_TOLERANCE)


def scripted_with_names(folder: Path) -> Case:
    _script(_Tokens(), folder)
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 50, (4, 6)), rng.integers(0, 2, (4, 6)).astype("f")
    words, more = _ask(_Tokens(), ids, mask)
    inputs = [{"name": "ids", "datatype": "INT64", "shape": [-1, -1]}, {"name": "mask", "shape": [-1, -1]}]
    options = {"inputs": inputs, "outputs": [{"name": "words"}, {"name": "vector"}]}
    expected = {"words": words.numpy(), "vector": more["vector"].numpy()}
    return Case({"ids": ids, "mask": mask}, expected, options, rtol=_TOLERANCE)


def scripted_in_training(folder: Path) -> Case:
    _script(_Net().train(), folder)
    options = {"inputs": [{"name": "x", "shape": [-1, 4]}]}
    return Case({"x": _rows()}, {"output-0": _ask(_Net(), _rows()).numpy()}, options, rtol=_TOLERANCE)


def scripted_that_writes_to_its_input(folder: Path) -> Case:
    _script(_InPlace(), folder)
    return Case({"x": _rows()}, {"output-0": _rows() * 2}, {"inputs": [{"name": "x", "shape": [-1, 4]}]})


def scripted_texts(folder: Path) -> Case:
    _script(_Texts(), folder)
    texts = np.array(["a", "über", ""], object)
    options = {"inputs": [{"name": "texts", "datatype": "BYTES", "shape": [-1]}]}
    expected = {"output-0": np.array(["a!", "über!", "!"], object), "output-1": np.array([1, 5, 0])}  # it counts bytes
    return Case({"texts": to_bytes_array(texts)}, expected, options)


def scripted_dictionary(folder: Path) -> Case:
    _script(_Same(), folder)
    options = {"inputs": [{"name": "a", "shape": [-1, 4]}, {"name": "b", "datatype": "INT32", "shape": [-1]}]}
    rows = {"a": _rows(), "b": np.arange(5, dtype=np.int32)}
    return Case(rows, {"a_out": rows["a"], "b_out": rows["b"]}, options)


def scripted_rows_that_see_each_other(folder: Path) -> Case:
    _script(_Ranks(), folder)
    options = {"inputs": [{"name": "x", "shape": [-1, 4]}]}
    return Case({"x": _rows()}, {"output-0": _ask(_Ranks(), _rows()).numpy()}, options, rtol=_TOLERANCE)


def scripted_with_optional_inputs(folder: Path) -> Case:
    _script(_Scaled(), folder)
    inputs = [{"name": "x", "shape": [-1, 4]}, {"name": "bias", "shape": [-1, 4]}]
    return Case({"x": _rows(), "bias": _rows()}, {"output-0": _rows() * 3}, {"inputs": inputs})
