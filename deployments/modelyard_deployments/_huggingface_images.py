# SPDX-License-Identifier: Apache-2.0
"""Images: their class, and what is where in them. Needs Pillow; torchvision is used where it is installed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.model import Model
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._huggingface_load import Loaded, load_part
from modelyard_deployments._huggingface_options import HuggingFaceOptions
from modelyard_deployments._huggingface_scores import ScoreHead
from modelyard_deployments._huggingface_values import read_parameter, to_files, to_json_array

_IMAGE: Final = "image"
_CLASSES: Final = 5
_AT_ONCE: Final = 16
"""Images of one forward pass."""
_HEADS: Final = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"P6", b"P5")
_GREY_DOT: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR4nGNsaGhgwAaYsIoOWgkAMBcBkGHHl6YAAAAASUVORK5CYII="
)


def decode_images(array: Array) -> list[Any]:
    """Pillow's images, upright and with three colours.

    Raises:
        InvalidRequest: One is no image, or too large to be one.
    """
    files = to_files(_IMAGE, array, lambda item: item.startswith(_HEADS))
    return [_decode(f'input "{_IMAGE}"[{row}]', item) for row, item in enumerate(files)]


def _decode(where: str, item: bytes) -> Any:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(item))
            return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InvalidRequest(f"{where}: expected at most {Image.MAX_IMAGE_PIXELS} pixels, got more") from exc
    except (OSError, ValueError, SyntaxError, EOFError) as exc:  # Pillow's own, for files of many kinds
        raise InvalidRequest(f"{where}: expected an image (PNG, JPEG, …), got what Pillow cannot read") from exc


class ImageClassification(Model):
    """Labels and scores of images."""

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        self._loaded = loaded
        self._processor = load_part(loaded.folder, "AutoImageProcessor", "the image processor", options)
        self._head = ScoreHead(loaded.config, options.function_to_apply, options.top_k or _CLASSES)
        inputs = (TensorSpec(_IMAGE, "BYTES", (-1,), content_type="base64"),)
        self._signature = self._head.to_signature(inputs, {_IMAGE: _GREY_DOT})

    @property
    def signature(self) -> Signature:
        """``image``, a file; labels and scores."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Computes logits once, and from them what is asked for.

        Raises:
            InvalidRequest: One is no image.
        """
        images = decode_images(inputs[_IMAGE])
        parts = [self._to_logits(images[at : at + _AT_ONCE]) for at in range(0, len(images), _AT_ONCE)]
        answers = self._head.answer(np.concatenate(parts), parameters)
        return {name: answers[name] for name in outputs}

    def _to_logits(self, images: Sequence[Any]) -> Array:
        logits: Array = forward(self._loaded, self._processor, images).logits.float().numpy(force=True)
        return logits


class ObjectDetection(Model):
    """Objects in images, with their boxes in pixels."""

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        self._loaded = loaded
        self._processor = load_part(loaded.folder, "AutoImageProcessor", "the image processor", options)
        self._threshold = options.threshold
        self._signature = Signature(
            inputs=(TensorSpec(_IMAGE, "BYTES", (-1,), content_type="base64"),),
            outputs=(TensorSpec("objects", "BYTES", (-1,), content_type="json"),),
            any_input_name=True,
            example={_IMAGE: _GREY_DOT},
        )

    @property
    def signature(self) -> Signature:
        """``image``, a file; ``objects``, a list for each row."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Looks at each image by itself: padding to the size of another one would change what is found.

        Raises:
            InvalidRequest: One is no image, or ``threshold`` is no number.
        """
        threshold = read_parameter(parameters, "threshold", float, self._threshold)
        return {"objects": to_json_array([self._find(image, threshold) for image in decode_images(inputs[_IMAGE])])}

    def _find(self, image: Any, threshold: float) -> list[dict[str, Any]]:
        outputs = forward(self._loaded, self._processor, [image])
        (found,) = self._processor.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=[(image.height, image.width)]
        )
        names = self._loaded.config.id2label
        return [
            {
                "score": score,
                "label": names[label],
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
            }
            for score, label, box in zip(
                found["scores"].tolist(), found["labels"].tolist(), found["boxes"].int().tolist(), strict=True
            )
        ]


def forward(loaded: Loaded, processor: Any, images: Sequence[Any]) -> Any:
    """One pass without gradients."""
    import torch

    inputs = processor(images=list(images), return_tensors="pt").to(loaded.device, loaded.model.dtype)
    with torch.inference_mode():
        return loaded.model(**inputs)
