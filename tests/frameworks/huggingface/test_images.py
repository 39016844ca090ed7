# SPDX-License-Identifier: Apache-2.0
"""Images come as bytes, as base64 and as data URLs."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest


def _png(**settings: Any) -> bytes:
    from PIL import Image

    rng = np.random.default_rng(1)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(file, **{"format": "PNG"} | settings)
    return file.getvalue()


def _ask(*images: str) -> bytes:
    return json.dumps({"instances": list(images)}).encode()


def test_images_are_base64_in_json(load: Any, predict: Any) -> None:
    model = load("images")
    text = base64.b64encode(_png()).decode()
    array = np.empty(1, dtype=object)
    array[0] = _png()
    wanted = model.predict({"image": array}, ("score",), {})["score"]
    bodies = [_ask(text), _ask(f"data:image/png;base64,{text}"), b'{"instances": [{"b64": "%s"}]}' % text.encode()]
    for body in [*bodies, b'{"instances": [{"image": {"b64": "%s"}}]}' % text.encode()]:
        np.testing.assert_array_equal(predict(model, body, ("score",))["score"], wanted)


def test_formats_and_colours_are_pillows(load: Any, predict: Any) -> None:
    model = load("images", top_k="all")
    images = [_png(format="GIF"), _png(format="BMP"), _png(format="WEBP")]
    body = _ask(*(base64.b64encode(one).decode() for one in images))
    assert predict(model, body)["label"].shape == (3, 7)


def test_bytes_of_any_kind_are_taken(load: Any) -> None:
    array = np.empty(1, dtype=object)
    array[0] = _png(format="ICO")
    assert load("images").predict({"image": array}, ("label",), {})["label"].shape == (1, 5)


@pytest.mark.parametrize("content", [b"no image", _png()[:60], b"%PDF-1.4"])
def test_what_is_no_image_is_the_clients_mistake(content: bytes, load: Any, predict: Any) -> None:
    with pytest.raises(InvalidRequest, match=r'input "image"\[0\]: expected an image'):
        predict(load("images"), _ask(base64.b64encode(content).decode()))


def test_what_is_no_base64_is_the_clients_mistake(load: Any, predict: Any) -> None:
    with pytest.raises(InvalidRequest, match="base64 of them, got b'a cat!'"):
        predict(load("images"), _ask("a cat!"))


def test_an_image_of_too_many_pixels_is_refused(load: Any, predict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InvalidRequest, match="expected at most 100 pixels"):
        predict(load("images"), _ask(base64.b64encode(_png()).decode()))


def test_a_request_says_what_counts_as_an_object(load: Any, predict: Any) -> None:
    model = load("objects", threshold=0.0)
    body = _ask(base64.b64encode(_png()).decode())
    every = json.loads(predict(model, body)["objects"][0])
    some = json.loads(predict(model, body, threshold=0.3)["objects"][0])
    assert some == [one for one in every if one["score"] > 0.3]
    assert len(some) < len(every)
    assert set(every[0]["box"]) == {"xmin", "ymin", "xmax", "ymax"}
