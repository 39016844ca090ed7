# SPDX-License-Identifier: Apache-2.0
"""The user's own Python class as a model: ``framework: custom``.

The artifact is a folder with Python files, or one file; ``entrypoint`` names the class, a subclass of
``modelyard.Model``::

    # models/churn/model.py
    import modelyard

    class Churn(modelyard.Model):
        def predict(self, text: str, limit: int = 100) -> float:
            return min(len(text), limit) / limit

What it takes and gives follows from the type hints of ``predict``, see ``_custom_hints``. A class that has a
``signature`` gets named arrays instead: ``predict(self, inputs, outputs, parameters)``. ``preprocess``, ``postprocess``
and ``explain`` stand around it where the class has them. With the option ``model`` another model of the platform
predicts, and the class is what stands in front of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from modelyard.errors import ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature
from modelyard.tensor import DATATYPES
from modelyard_deployments._custom_assembly import assemble, make_model
from modelyard_deployments._custom_import import import_class, reasons


class CustomOptions(Options):
    """Options of ``framework: custom``."""

    entrypoint: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="Module and class in the model's folder, `my_models:Churn`; a dotted module is one in a package. "
        "Left out, the only model in `model.py`, or in the file that `uri` names.",
    )
    installed: bool = Field(
        default=False,
        description="The module may be one of an installed package; one of that name in the folder comes first.",
    )
    model: str | None = Field(
        default=None,
        description="Another model of the platform, which predicts: the class has preprocess or postprocess only.",
    )
    wait_s: float = Field(default=120.0, ge=0, description="Seconds that loading waits for that model to be ready.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Given to the model's `load` as they are.")


class CustomFramework(Framework):
    """Loads a folder of Python files and makes the class that ``entrypoint`` names."""

    options: ClassVar[type[Options]] = CustomOptions
    loads_code: ClassVar[bool] = True

    def load(self, path: Path, options: CustomOptions) -> Model:
        """Imports the module, makes the model and lets it load.

        Raises:
            ModelLoadError: The module or class is missing, is no model, or raises.
        """
        found = import_class(path, options.entrypoint, options.installed)
        where = f'"{options.entrypoint or found.__name__}"'
        with reasons(f"{where} cannot be loaded", path):
            made = make_model(found, where, options.model, options.wait_s)
            made.model.load(path, options.settings)
            signature = made.model.signature
        if not isinstance(signature, Signature):
            got = type(signature).__name__
            raise ModelLoadError(f"{where} signature: expected a modelyard.Signature, got {got}")
        _check_signature(signature, where)
        return assemble(made, where)


def _check_signature(signature: Signature, entrypoint: str) -> None:
    """Refuses what could answer no request, or would be given rows of several requests in a shape it does not expect.

    Raises:
        ModelLoadError: With the tensor and what is wrong with it.
    """
    if not signature.outputs:
        raise ModelLoadError(f"{entrypoint} signature: expected at least one output, got none")
    for spec in (*signature.inputs, *signature.outputs, *signature.on_request):
        where = f'{entrypoint} signature, tensor "{spec.name}"'
        if spec.datatype not in DATATYPES:
            raise ModelLoadError(f'{where}: expected a datatype of {", ".join(DATATYPES)}, got "{spec.datatype}"')
        if signature.batch_axis and spec.shape[:1] != (-1,):
            raise ModelLoadError(
                f"{where}: expected rows (-1) as the first dimension, got {list(spec.shape)}; "
                "say batch_axis=False where requests have no rows"
            )
