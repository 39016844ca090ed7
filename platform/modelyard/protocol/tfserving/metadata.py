# SPDX-License-Identifier: Apache-2.0
"""The signatures of a model, as ``GET …/metadata`` and ``GetModelMetadata`` tell them.

Source: TensorFlow Serving "RESTful API", "Model Metadata API"; ``servables/tensorflow/get_model_metadata_impl.cc``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from modelyard.errors import InvalidRequest
from modelyard.protocol.http import Encoded, encode_json
from modelyard.protos import tensorflow_serving_pb2 as pb
from modelyard.signature import Signature, TensorSpec

PREDICT_METHOD: Final = "tensorflow/serving/predict"

DTYPES: Final = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
}
"""TensorFlow's names of the datatypes. Source: TensorFlow ``framework/types.proto``."""

_FIELD: Final = "signature_def"


def encode_metadata(name: str, version: str, signatures: Mapping[str, Signature]) -> Encoded:
    """The answer over REST.

    Args:
        name: The model.
        version: The version that answers.
        signatures: All of its signatures, by name.
    """
    return encode_json(
        {
            "model_spec": {"name": name, "signature_name": "", "version": version},
            "metadata": {_FIELD: {_FIELD: _definitions(signatures)}},
        }
    )


def check_fields(fields: Iterable[str]) -> None:
    """Refuses a request for other metadata than signatures, or for none.

    Raises:
        InvalidRequest: With what there is.
    """
    asked = list(fields)
    for field in asked:
        if field != _FIELD:
            raise InvalidRequest(f'Metadata field "{field[:40]}" is not supported: expected "{_FIELD}"')
    if not asked:
        raise InvalidRequest(f'GetModelMetadataRequest must specify at least one metadata_field: expected "{_FIELD}"')


def encode_metadata_message(
    name: str, version: str, signatures: Mapping[str, Signature]
) -> pb.GetModelMetadataResponse:
    """The answer over gRPC; the arguments are those of :func:`encode_metadata`."""
    response = pb.GetModelMetadataResponse()
    response.model_spec.name = name
    response.model_spec.version.value = int(version)
    response.metadata[_FIELD].Pack(ParseDict({_FIELD: _definitions(signatures)}, pb.SignatureDefMap()))
    return response


def _definitions(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Each as a ``SignatureDef``; ``-1`` is a variable dimension, and what is 64 bits wide is a string."""
    return {name: _definition(signature) for name, signature in signatures.items()}


def _definition(signature: Signature) -> dict[str, Any]:
    saved = signature.saved
    if saved is None:
        inputs, outputs = _tensors(signature.inputs, {}, frozenset()), _tensors(signature.outputs, {}, frozenset())
    else:
        inputs = _tensors(signature.inputs, saved.inputs, saved.unknown_ranks)
        outputs = _tensors(signature.outputs, saved.outputs, saved.unknown_output_ranks)
    method = PREDICT_METHOD if saved is None else saved.method
    return {"inputs": inputs, "outputs": outputs, "method_name": method, "defaults": {}}


def _tensors(specs: tuple[TensorSpec, ...], names: Mapping[str, str], unknown_ranks: frozenset[str]) -> dict[str, Any]:
    return {
        spec.name: {
            "dtype": DTYPES[spec.datatype],
            "tensor_shape": {
                "dim": [] if spec.name in unknown_ranks else [{"size": str(dim), "name": ""} for dim in spec.shape],
                "unknown_rank": spec.name in unknown_ranks,
            },
            "name": names.get(spec.name, f"{spec.name}:0"),
        }
        for spec in specs
    }
