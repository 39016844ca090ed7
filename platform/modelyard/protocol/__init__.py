# SPDX-License-Identifier: Apache-2.0
"""Wire formats: bytes and messages to the vocabulary and back, nothing else.

"One request": a decoder makes the ``InferenceRequest`` once at the start, an encoder turns the ``InferenceResponse``
into bytes once at the end. No I/O, no Ray, no web server; ``grpc`` speaks in the messages of ``tritonclient``'s stubs.

::

    v1       KServe and TensorFlow Serving REST: :predict, list, status
    v2       Open Inference Protocol over HTTP, JSON and the binary tensor data extension
    grpc     Open Inference Protocol over gRPC, raw and typed
    errors   what a client sees of an error
    http     the encoded reply, and JSON text in and out
    tensors  JSON lists to arrays and back, shared by v1 and v2
    fields   checks of single fields, shared by all
"""
