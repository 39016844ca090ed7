# SPDX-License-Identifier: Apache-2.0
"""The messages of ``tensorflow.serving.PredictionService`` to the vocabulary and back.

"One request": its two ends on that service. No message of it travels past this module.

Source: TensorFlow Serving ``apis/*.proto``; ``servables/tensorflow/predict_util.cc`` and ``multi_inference.cc``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from modelyard.errors import InvalidRequest, Unsupported
from modelyard.inference import InferenceRequest, InferenceResponse, RequestedOutput
from modelyard.protocol.fields import check_unique
from modelyard.protocol.tensors import to_text
from modelyard.protocol.tfserving.examples import CLASSIFY, REGRESS, add_context, fill_absent
from modelyard.protocol.tfserving.tensors import Budget, decode_tensor, encode_tensor
from modelyard.protos import tensorflow_packed_pb2 as packed
from modelyard.protos import tensorflow_serving_pb2 as pb
from modelyard.tensor import Array

_KINDS: Final = (CLASSIFY, REGRESS)


@dataclass(frozen=True, slots=True)
class Spec:
    """Which signature of which model a message asks for.

    Attributes:
        model: Name of the model.
        version: A revision's number or a label; empty where the message names none.
        signature: Name of the signature; empty where the message names none.
    """

    model: str
    version: str
    signature: str


def decode_spec(message: pb.ModelSpec) -> Spec:
    """The model that a message names.

    Raises:
        InvalidRequest: It names none.
    """
    if not message.name:
        raise InvalidRequest("ModelSpec has no name specified: expected a model's")
    return Spec(message.name, _version(message), message.signature_name)


def _version(message: pb.ModelSpec) -> str:
    choice = message.WhichOneof("version_choice")
    if choice is None:
        return ""
    return str(message.version.value) if choice == "version" else message.version_label


def decode_predict(message: pb.PredictRequest, max_bytes: int) -> InferenceRequest:
    """One request. Tensors with ``tensor_content`` are read-only views on the message's buffers, BYTES excepted.

    Args:
        message: The request.
        max_bytes: More than so many in all tensors together are refused.

    Raises:
        InvalidTensor: A tensor contradicts its own datatype or shape.
        InvalidRequest: An output is asked for twice.
        TooLarge: The tensors are too large, as sent or by what their shapes say.
    """
    budget = Budget(max_bytes)
    inputs = {name: decode_tensor(tensor, f'input "{name}"', budget) for name, tensor in message.inputs.items()}
    outputs = check_unique(tuple(map(RequestedOutput, message.output_filter)))
    return InferenceRequest(inputs, outputs=outputs)


def encode_predict(response: InferenceResponse, signature_name: str) -> packed.PredictResponse:
    """The answer, the bytes of a ``PredictResponse``.

    Args:
        response: The answer.
        signature_name: Of the signature that has answered.
    """
    message = packed.PredictResponse()
    fill_spec(message.model_spec, response, signature_name)
    for name, array in response.outputs.items():
        encode_tensor(array, message.outputs[name])
    return message


def fill_spec(message: pb.ModelSpec, response: InferenceResponse, signature_name: str) -> None:
    """Says which version of which model has answered, and by which signature."""
    message.name = response.model_name
    message.version.value = int(response.model_version)
    message.signature_name = signature_name


def decode_input(message: pb.Input, max_bytes: int) -> list[bytes]:
    """The serialized examples of a request; each with the features of the context that it has not itself.

    Args:
        message: Of the request.
        max_bytes: More than so many in all examples together are refused.

    Raises:
        InvalidRequest: There is no example.
        TooLarge: They are too large, each with its context.
    """
    examples, context = message.example_list.examples, b""
    if message.WhichOneof("kind") == "example_list_with_context":
        whole = message.example_list_with_context
        examples, context = whole.examples, whole.context.SerializeToString()
    if not examples:
        raise InvalidRequest("Input is empty: expected an example at least")
    return add_context(context, (example.SerializeToString() for example in examples), max_bytes)


def fill_classes(labels: Array | None, scores: Array | None, into: pb.ClassificationResult) -> None:
    """Writes what :func:`~modelyard.protocol.tfserving.examples.to_classes` has found.

    Raises:
        InvalidRequest: A label is not UTF-8, which the message cannot carry.
    """
    texts = None if labels is None else to_text(labels, 'output "classes"')
    for row in fill_absent(texts, scores):
        classes = into.classifications.add().classes
        for label, score in zip(*row, strict=True):
            classes.add(label=label, score=score)


def fill_values(values: Array, into: pb.RegressionResult) -> None:
    """Writes what :func:`~modelyard.protocol.tfserving.examples.to_values` has found."""
    for value in values.tolist():
        into.regressions.add(value=value)


def decode_tasks(message: pb.MultiInferenceRequest) -> list[tuple[Spec, str]]:
    """Which signatures are to be run by which methods; all of one model, and each once.

    Raises:
        InvalidRequest: The tasks contradict each other, or there is none.
        Unsupported: A method is neither classification nor regression.
    """
    tasks = [(decode_spec(task.model_spec), task.method_name) for task in message.tasks]
    if not tasks:
        raise InvalidRequest("Inference request must contain at least one task")
    if len({spec.model for spec, _ in tasks}) > 1:
        raise InvalidRequest("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
    versions = {spec.version for spec, _ in tasks if spec.version}
    if len(versions) > 1:
        raise InvalidRequest("All ModelSpecs in a MultiInferenceRequest must access the same version of the model.")
    for _, method in tasks:
        if method not in _KINDS:
            raise Unsupported(
                f'Unsupported signature method_name: "{method[:80]}": expected one of {", ".join(_KINDS)}'
            )
    version = "".join(versions)
    return [(replace(spec, version=version), method) for spec, method in tasks]


def check_different(names: list[str]) -> None:
    """Refuses tasks for the same signature.

    Raises:
        InvalidRequest: With the first that comes twice.
    """
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(f"Duplicate evaluation of signature: {name}")
