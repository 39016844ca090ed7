# SPDX-License-Identifier: Apache-2.0
"""Modelyard: one platform for every trained model, on Ray Serve.

The names below are imported when first used: importing ``modelyard`` alone loads nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

from modelyard.version import __version__

if TYPE_CHECKING:
    from modelyard.admin import ModelStatus
    from modelyard.client import AsyncPlatform, Platform
    from modelyard.config import ModelSpec
    from modelyard.errors import InvalidRequest
    from modelyard.own import Model
    from modelyard.signature import Signature, TensorSpec

__all__ = [
    "AsyncPlatform",
    "InvalidRequest",
    "Model",
    "ModelSpec",
    "ModelStatus",
    "Platform",
    "Signature",
    "TensorSpec",
    "__version__",
]

_HOMES = {
    "AsyncPlatform": "modelyard.client",
    "InvalidRequest": "modelyard.errors",
    "Model": "modelyard.own",
    "ModelSpec": "modelyard.config",
    "ModelStatus": "modelyard.admin",
    "Platform": "modelyard.client",
    "Signature": "modelyard.signature",
    "TensorSpec": "modelyard.signature",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
