# SPDX-License-Identifier: Apache-2.0
"""Keras models, turned into SavedModels: what they answer then is computed as theirs, without Keras."""

from __future__ import annotations

import contextlib
import keyword
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelyard.errors import ModelLoadError
from modelyard_deployments._tensorflow_graph import to_reason
from modelyard_deployments._tensorflow_start import import_keras, import_tensorflow

_SIGNATURE: Final = "serving_default"
_MISSING: Final = re.compile(r"(?:Could not locate (?:class|function)|Unknown (?:layer|\w+ function|object):) '(\w+)'")
_CAUSE: Final = "Exception encountered: "
_CONFIG: Final = "Full object config:"
_ARGUMENTS: Final = "Arguments received by"
_COLOURS: Final = re.compile(r"\x1b\[\d*m")


def export_keras(path: Path, folder: Path, threads: int) -> None:
    """Writes a Keras model as a SavedModel, as ``model.export`` does, with the names that its tensors have in Keras.

    Args:
        path: The model's file.
        folder: Where to.
        threads: Threads that computing may use from now on.

    Raises:
        ModelLoadError: This Keras cannot load the file, or loading it would run code from it.
    """
    keras = import_keras()
    _settle(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about optimizers, and names that Keras changes
            _export(keras, keras.saving.load_model(path, compile=False, safe_mode=True), folder, path.name)
    except ModelLoadError:
        raise
    except Exception as exc:  # Keras has no errors of its own, and those of layers can be anything
        raise ModelLoadError(f"{path.name}: {_explain(keras, exc, path)}") from exc


def _settle(threads: int) -> None:
    """The eager part of TensorFlow, which loads the weights: on the CPU, and with few threads."""
    tf = import_tensorflow()
    logging.getLogger("absl").setLevel(logging.ERROR)
    with contextlib.suppress(RuntimeError):  # it has begun already, in a process with several models
        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def _export(keras: Any, model: Any, folder: Path, name: str) -> None:
    tf = import_tensorflow()
    if not getattr(model, "inputs", None):
        raise ModelLoadError(
            f"{name}: the model does not say what it takes, for it was never built; call it once before it is saved"
        )

    def answer(*tensors: Any) -> dict[str, Any]:
        structure = getattr(model, "input", None)
        inputs = tensors[0] if structure is None else keras.tree.pack_sequence_as(structure, list(tensors))
        answers = model(inputs, training=False)
        flat = keras.tree.flatten(answers)
        return dict(zip(_name_outputs(model, answers), flat, strict=True))

    archive = keras.export.ExportArchive()
    archive.track(model)
    by_argument = {_to_argument(one.name, place): one.name for place, one in enumerate(model.inputs)}
    tensors = zip(by_argument, model.inputs, strict=True)
    specs = [tf.TensorSpec(one.shape, one.dtype, name=argument) for argument, one in tensors]
    archive.add_endpoint(_SIGNATURE, answer, specs)
    archive.write_out(str(folder), verbose=False)
    _rename_inputs(folder, by_argument)


def _to_argument(name: str, place: int) -> str:
    """TensorFlow saves inputs under names that Python's arguments can have; Keras allows any."""
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"keras_input_{place}"


def _rename_inputs(folder: Path, names: Mapping[str, str]) -> None:
    if all(argument == name for argument, name in names.items()):
        return
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = folder / "saved_model.pb"
    saved = SavedModel.FromString(path.read_bytes())
    inputs = saved.meta_graphs[0].signature_def[_SIGNATURE].inputs
    for argument, name in names.items():
        if argument != name:
            inputs[name].CopyFrom(inputs.pop(argument))
    path.write_bytes(saved.SerializeToString())


def _name_outputs(model: Any, answers: Any) -> list[str]:
    """The keys of a dictionary, else the names of the layers that answer, each once."""
    if isinstance(answers, dict) and not any(isinstance(one, dict | list | tuple) for one in answers.values()):
        return sorted(answers)  # as they are flattened
    names = getattr(model, "output_names", None) or [model.layers[-1].name]
    return [name if name not in names[:place] else f"{name}_{place}" for place, name in enumerate(names)]


def _explain(keras: Any, exc: Exception, path: Path) -> str:
    text = str(exc)
    if "Lambda" in text and "safe_mode" in text:
        return (
            "the model has a Lambda layer, which is Python code in the file, and that is not run; export the model as "
            "a SavedModel where it was made: model.export(…)"
        )
    if missing := _MISSING.search(text):
        return (
            f'the model has a class of its own, "{missing[1]}", whose code is not in the file; export the model as a '
            "SavedModel where it was made: model.export(…)"
        )
    text = _COLOURS.sub("", text.rpartition(_CAUSE)[2]).partition(_CONFIG)[0].partition(_ARGUMENTS)[0]
    reason = to_reason(ValueError(text), path.parent)
    return f"Keras {keras.__version__} cannot load this model: {reason}"
