# SPDX-License-Identifier: Apache-2.0
"""PaddlePaddle: each function saves one program into a folder and says what the network answers outside of it."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from modelyard.testing import Case

_OLD_PROGRAM = """
import warnings
warnings.simplefilter("ignore")
import sys
import numpy as np
import paddle
paddle.seed(7)
net = paddle.nn.Sequential(paddle.nn.Linear(4, 8), paddle.nn.ReLU(), paddle.nn.Linear(8, 3), paddle.nn.Softmax())
net.eval()
paddle.jit.save(net, sys.argv[1] + "/model", input_spec=[paddle.static.InputSpec([None, 4], "float32", "x")])
rows = np.load(sys.argv[1] + "/rows.npy")
np.save(sys.argv[1] + "/expected.npy", net(paddle.to_tensor(rows)).numpy())
"""


def _paddle() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import paddle
    paddle.seed(7)
    return paddle


def _rows(width: int = 4, rows: int = 5) -> Any:
    return np.random.default_rng(7).normal(size=(rows, width)).astype(np.float32)


def _save(folder: Path, layer: Any, *specs: tuple[list[int | None], str, str], name: str = "model") -> None:
    paddle = _paddle()
    layer.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about programs without parameters
        paddle.jit.save(layer, str(folder / name), input_spec=[paddle.static.InputSpec(*spec) for spec in specs])


def _layer(forward: Callable[..., Any], **parts: Any) -> Any:
    """A layer of these parts; ``forward`` takes the layer as ``self``, for Paddle reads its source."""
    layer = type("Layer", (_paddle().nn.Layer,), {"forward": forward})()
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer


def _answer(layer: Any, *arrays: Any) -> Any:
    paddle = _paddle()
    answers = layer(*map(paddle.to_tensor, arrays))
    return [one.numpy() for one in answers] if isinstance(answers, tuple) else answers.numpy()


def classifier(folder: Path) -> Case:
    nn = _paddle().nn
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax())
    _save(folder, net, ([None, 4], "float32", "x"), name="inference")
    (folder / "config.json").write_text("{}")  # as some exporters put it there
    return Case({"x": _rows()}, {"fetch_name_0": _answer(net, _rows())})


def with_onednn(folder: Path) -> Case:
    case = classifier(folder)
    return Case(case.inputs, case.expected, options={"onednn": True, "threads": 2})


def old_program(folder: Path) -> Case:
    np.save(folder / "rows.npy", _rows())
    environment = os.environ | {"FLAGS_enable_pir_api": "0"}  # read when paddle is imported
    subprocess.run([sys.executable, "-c", _OLD_PROGRAM, str(folder)], check=True, env=environment, timeout=120)
    expected = np.load(folder / "expected.npy")
    return Case({"x": _rows()}, {"softmax_0.tmp_0": expected})


def _forward_text(self: Any, ids: Any, mask: Any, weight: Any) -> Any:
    import paddle

    found = self.table(ids) * paddle.cast(paddle.unsqueeze(mask, -1), "float32")
    return found.sum(axis=1) * weight, paddle.cast(ids, "int32") + 1, paddle.logical_not(mask)


def several_inputs_and_outputs(folder: Path) -> Case:
    layer = _layer(_forward_text, table=_paddle().nn.Embedding(10, 4))
    specs = ([None, None], "int64", "ids"), ([None, None], "bool", "mask"), ([None, 1], "float32", "weight")
    _save(folder, layer, *specs)
    inputs = {
        "ids": np.array([[1, 2, 3], [9, 0, 9], [5, 5, 5]]),
        "mask": np.array([[True, False, True], [False, False, False], [True, True, True]]),
        "weight": np.array([[1.0], [2.0], [-1.0]], dtype=np.float32),
    }
    answers = _answer(layer, *inputs.values())
    return Case(inputs, dict(zip(("fetch_name_0", "fetch_name_1", "fetch_name_2"), answers, strict=True)))


def _forward_twice(self: Any, x: Any) -> Any:
    import paddle

    return paddle.concat([x, x], axis=1)


def _twice(folder: Path, datatype: str, dtype: Any = None) -> Case:
    _save(folder, _layer(_forward_twice), ([None, 2], datatype, "x"))
    rows = np.array([[0, 1], [1, 3], [2, 0]]).astype(dtype or datatype)
    return Case({"x": rows}, {"fetch_name_0": np.concatenate([rows, rows], axis=1)})


def int8_tensors(folder: Path) -> Case:
    return _twice(folder, "int8")


def int16_tensors(folder: Path) -> Case:
    return _twice(folder, "int16")


def int32_tensors(folder: Path) -> Case:
    return _twice(folder, "int32")


def int64_tensors(folder: Path) -> Case:
    return _twice(folder, "int64")


def bool_tensors(folder: Path) -> Case:
    return _twice(folder, "bool")


def float16_tensors(folder: Path) -> Case:
    return _twice(folder, "float16")


def bfloat16_tensors(folder: Path) -> Case:
    return _twice(folder, "bfloat16", ml_dtypes.bfloat16)


def float64_tensors(folder: Path) -> Case:
    return _twice(folder, "float64")


def _forward_image(self: Any, image: Any) -> Any:
    import paddle

    return paddle.cast(image, "float32").mean(axis=[1, 2])


def uint8_images_of_any_size(folder: Path) -> Case:
    layer = _layer(_forward_image)
    _save(folder, layer, ([None, None, None, 3], "uint8", "image"))
    images = np.arange(4 * 5 * 6 * 3).reshape(4, 5, 6, 3).astype(np.uint8)
    return Case({"image": images}, {"fetch_name_0": images.astype(np.float32).mean(axis=(1, 2))})


def images_that_must_have_a_size(folder: Path) -> Case:
    nn = _paddle().nn
    net = nn.Sequential(nn.Conv2D(1, 2, 5), nn.AdaptiveAvgPool2D(1), nn.Flatten())
    _save(folder, net, ([None, 1, None, None], "float32", "image"))
    images = _rows(64, 3).reshape(3, 1, 8, 8)
    return Case({"image": images}, {"fetch_name_0": _answer(net, images)}, rtol=1e-5)


def fixed_number_of_rows(folder: Path) -> Case:
    net = _paddle().nn.Linear(4, 2)
    _save(folder, net, ([3, 4], "float32", "x"))
    return Case({"x": _rows(rows=3)}, {"fetch_name_0": _answer(net, _rows(rows=3))})


def _forward_flat(self: Any, x: Any) -> Any:
    import paddle

    return paddle.reshape(x, [-1])


def answer_of_other_length(folder: Path) -> Case:
    layer = _layer(_forward_flat)
    _save(folder, layer, ([None, 4], "float32", "x"))
    return Case({"x": _rows()}, {"fetch_name_0": _rows().reshape(-1)})
