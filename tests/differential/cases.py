# SPDX-License-Identifier: Apache-2.0
"""The requests that both are sent, by name.

Left out is what ends Triton 2.51's process: an output of BYTES or without elements asked for with ``classification``,
and a decoupled model that goes on after an error where the client sent ``triton_grpc_error``.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb
from wire import Ask, binary, counted, http, infer, rpc, steps, stream

ROW = np.array([[1, 2, 3, 4]], dtype="<f4")
_ROW_BYTES = ROW.tobytes()
_PROBABILITIES = [0.125, 0.625, 0.25]
_GZIP = {"Content-Encoding": "gzip"}
_BINARY = {"parameters": {"binary_data_output": True}}


def _tensor(name: str, datatype: str, data: Any, shape: Any = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)] if shape is None else shape, "data": data}


def _rows(count: int = 1) -> dict[str, Any]:
    return _tensor("INPUT", "FP32", [float(n) for n in range(4 * count)], [count, 4])


def _head(size: Any = 16, **others: Any) -> dict[str, Any]:
    return {"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": size}, **others}


def _sums(**changed: Any) -> Ask:
    return infer("sums", [{**_rows(), **changed}])


def _echo(datatype: str, data: Any, shape: Any = None) -> Ask:
    asked = [{"name": f"OUT_{datatype}"}]
    return infer("echo", [_tensor(f"IN_{datatype}", datatype, data, shape)], outputs=asked)


def _echo_binary(datatype: str, blob: bytes, count: int, is_out: bool = True) -> Ask:
    size = {"binary_data_size": len(blob)}
    tensor = {"name": f"IN_{datatype}", "datatype": datatype, "shape": [count], "parameters": size}
    output = {"name": f"OUT_{datatype}", "parameters": {"binary_data": is_out}}
    return binary("echo", {"inputs": [tensor], "outputs": [output]}, blob)


def _classify(output: str, count: Any, rows: Any = None, **others: Any) -> Ask:
    data = np.array(rows or [_PROBABILITIES])
    asked = [{"name": output, "parameters": {"classification": count, **others}}]
    return infer("classes", [_tensor("INPUT", "FP32", data.ravel().tolist(), list(data.shape))], outputs=asked)


def _broken(value: int) -> Ask:
    return infer("broken", [_tensor("INPUT", "INT32", [value])])


def _generate(model: str, body: Any, suffix: str = "", headers: Any = None) -> Ask:
    return http("POST", f"/v2/models/{model}/generate{suffix}", body, headers)


def _seen(body: Any) -> Ask:
    """A model that tells what it was given."""
    return _generate("seen", body)


def _bytes(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


HEALTH: dict[str, Ask] = {
    "health: live": http("GET", "/v2/health/live"),
    "health: ready": http("GET", "/v2/health/ready"),
    "health: HEAD": http("HEAD", "/v2/health/live"),
    "health: POST": http("POST", "/v2/health/live", b"x"),
    "health: trailing slash": http("GET", "/v2/health/live/"),
    "health: model ready": http("GET", "/v2/models/sums/ready"),
    "health: version ready": http("GET", "/v2/models/sums/versions/1/ready"),
    "health: unknown version ready": http("GET", "/v2/models/sums/versions/2/ready"),
    "health: unknown model ready": http("GET", "/v2/models/nope/ready"),
    "health: failed model ready": http("GET", "/v2/models/unloadable/ready"),
}

METADATA: dict[str, Ask] = {
    "metadata: server": http("GET", "/v2"),
    "metadata: server, POST": http("POST", "/v2", {}),
    "metadata: root": http("GET", "/"),
    "metadata: list of models": http("GET", "/v2/models"),
    **{
        f"metadata: {model}": http("GET", f"/v2/models/{model}")
        for model in ("sums", "echo", "classes", "text", "seen", "stream", "broken")
    },
    "metadata: version": http("GET", "/v2/models/sums/versions/1"),
    "metadata: unknown version": http("GET", "/v2/models/sums/versions/2"),
    "metadata: version 0": http("GET", "/v2/models/sums/versions/0"),
    "metadata: version x": http("GET", "/v2/models/sums/versions/x"),
    "metadata: unknown model": http("GET", "/v2/models/nope"),
    "metadata: failed model": http("GET", "/v2/models/unloadable"),
    "metadata: percent-encoded": http("GET", "/v2/models/s%75ms"),
    "metadata: query": http("GET", "/v2/models/sums?x=1"),
    "metadata: POST": http("POST", "/v2/models/sums", {}),
    "metadata: DELETE": http("DELETE", "/v2/models/sums"),
    "metadata: gzip asked for": http("GET", "/v2/models/sums", headers={"Accept-Encoding": "gzip"}),
    "metadata: no such path": http("GET", "/v2/nope"),
    "metadata: no such path of a model": http("GET", "/v2/models/sums/nope"),
}

CONFIG: dict[str, Ask] = {
    **{
        f"config: {model}": http("GET", f"/v2/models/{model}/config")
        for model in ("sums", "echo", "classes", "text", "seen", "stream")
    },
    "config: version": http("GET", "/v2/models/text/versions/1/config"),
    "config: unknown version": http("GET", "/v2/models/text/versions/2/config"),
    "config: unknown model": http("GET", "/v2/models/nope/config"),
    "config: POST": http("POST", "/v2/models/text/config", {}),
}

INFER: dict[str, Ask] = {
    "infer: plain": infer("sums", [_rows()]),
    "infer: 8 rows": infer("sums", [_rows(8)]),
    "infer: nested data": _sums(data=[[1, 2, 3, 4]]),
    "infer: no id": http("POST", "/v2/models/sums/infer", {"inputs": [_rows()]}),
    "infer: empty id": http("POST", "/v2/models/sums/infer", {"id": "", "inputs": [_rows()]}),
    "infer: version": infer("sums", [_rows()], "/versions/1"),
    "infer: one output": infer("sums", [_rows()], outputs=[{"name": "SUM"}]),
    "infer: outputs in another order": infer("sums", [_rows()], outputs=[{"name": "SUM"}, {"name": "OUTPUT"}]),
    "infer: outputs empty": infer("sums", [_rows()], outputs=[]),
    "infer: output twice": infer("sums", [_rows()], outputs=[{"name": "SUM"}, {"name": "SUM"}]),
    "infer: unknown key": infer("sums", [_rows()], more=1),
    "infer: parameters": infer("sums", [_rows()], parameters={"a": 1, "b": "x", "c": True, "d": 1.5}),
    "infer: parameter null": infer("sums", [_rows()], parameters={"a": None}),
    "infer: parameter list": infer("sums", [_rows()], parameters={"a": [1]}),
    "infer: parameters a list": infer("sums", [_rows()], parameters=[]),
    "infer: reserved parameter": infer("sums", [_rows()], parameters={"triton_x": 1}),
    "infer: priority": infer("sums", [_rows()], parameters={"priority": 1}),
    "infer: priority a string": infer("sums", [_rows()], parameters={"priority": "1"}),
    "infer: timeout": infer("sums", [_rows()], parameters={"timeout": 5_000_000}),
    "infer: timeout a string": infer("sums", [_rows()], parameters={"timeout": "1"}),
    "infer: sequence_id": infer("sums", [_rows()], parameters={"sequence_id": 5}),
    "infer: NaN and Infinity": http(
        "POST",
        "/v2/models/sums/infer",
        b'{"id":"1","inputs":[{"name":"INPUT","shape":[1,4],"datatype":"FP32","data":[NaN,Infinity,-Infinity,1]}]}',
    ),
    "infer: text/plain": infer("sums", [_rows()], headers={"Content-Type": "text/plain"}),
    "infer: octet-stream": infer("sums", [_rows()], headers={"Content-Type": "application/octet-stream"}),
    "infer: optional input": infer(
        "text", [_tensor("text_input", "BYTES", ["a\u00e9"]), _tensor("suffix", "BYTES", ["!"])]
    ),
    "infer: optional input left out": infer("text", [_tensor("text_input", "BYTES", ["a"])]),
    "infer: outputs left out by the model": infer("echo", [_tensor("IN_INT32", "INT32", [5])]),
    "infer: parameters that the model sees": infer(
        "seen",
        [_tensor("number", "INT64", [1, 2], [1, 2])],
        parameters={"a": 1, "b": "x", "c": True, "d": 1.5},
        outputs=[{"name": "inputs_seen"}, {"name": "parameters_seen"}],
    ),
    "infer: decoupled model": infer("stream", [_tensor("text_input", "BYTES", ["a"])]),
    "infer: trailing slash": http("POST", "/v2/models/sums/infer/", {"id": "1", "inputs": [_rows()]}),
    "infer: GET": http("GET", "/v2/models/sums/infer"),
}

INFER_ERRORS: dict[str, Ask] = {
    "error: unknown model": infer("nope", [_rows()]),
    "error: unknown version": infer("sums", [_rows()], "/versions/2"),
    "error: failed model": infer("unloadable", [_tensor("INPUT", "INT32", [1])]),
    "error: no JSON": http("POST", "/v2/models/sums/infer", b"not json"),
    "error: empty body": http("POST", "/v2/models/sums/infer", b""),
    "error: JSON list": http("POST", "/v2/models/sums/infer", [1]),
    "error: trailing data": http("POST", "/v2/models/sums/infer", json.dumps({"inputs": [_rows()]}).encode() + b" x"),
    "error: depth 200": http("POST", "/v2/models/sums/infer", b"[" * 200 + b"]" * 200),
    "error: no inputs": http("POST", "/v2/models/sums/infer", {}),
    "error: inputs empty": infer("sums", []),
    "error: inputs an object": infer("sums", {}),
    "error: id a number": http("POST", "/v2/models/sums/infer", {"id": 7, "inputs": [_rows()]}),
    "error: unknown input": infer("sums", [_rows(), _tensor("NOPE", "FP32", [1.0])]),
    "error: input twice": infer("sums", [_rows(), _rows()]),
    "error: missing input": infer("sums", [{**_rows(), "name": "NOPE"}]),
    "error: required input missing": infer("text", [_tensor("suffix", "BYTES", ["a"])]),
    "error: input without a name": infer("sums", [{"shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]),
    "error: input without a datatype": infer("sums", [{"name": "INPUT", "shape": [1, 4], "data": [1, 2, 3, 4]}]),
    "error: input without a shape": infer("sums", [{"name": "INPUT", "datatype": "FP32", "data": [1, 2, 3, 4]}]),
    "error: input without data": infer("sums", [{"name": "INPUT", "datatype": "FP32", "shape": [1, 4]}]),
    "error: wrong datatype": _sums(datatype="INT32", data=[1, 2, 3, 4]),
    "error: unknown datatype": _sums(datatype="FP31"),
    "error: datatype in lower case": _sums(datatype="fp32"),
    "error: wrong shape": infer("sums", [_tensor("INPUT", "FP32", [1.0] * 5, [1, 5])]),
    "error: no batch dimension": _sums(shape=[4]),
    "error: too few elements": _sums(data=[1, 2, 3]),
    "error: too many elements": _sums(data=[1, 2, 3, 4, 5]),
    "error: zero rows": _sums(shape=[0, 4], data=[]),
    "error: more rows than max_batch_size": infer("sums", [_rows(9)]),
    "error: negative dimension": _sums(shape=[-1, 4]),
    "error: shape of strings": _sums(shape=["1", "4"]),
    "error: shape a number": _sums(shape=4),
    "error: huge shape": _sums(shape=[2**62, 4]),
    "error: data a number": _sums(data=1),
    "error: string in FP32": _sums(data=["1", 2, 3, 4]),
    "error: boolean in FP32": _sums(data=[True, 2, 3, 4]),
    "error: null in FP32": _sums(data=[None, 2, 3, 4]),
    "error: unknown output": infer("sums", [_rows()], outputs=[{"name": "NOPE"}]),
    "error: output without a name": infer("sums", [_rows()], outputs=[{}]),
    "error: outputs an object": infer("sums", [_rows()], outputs={}),
    "error: gzip asked for": http("POST", "/v2/models/sums/infer", b"nope", {"Accept-Encoding": "gzip"}),
    "error: model raises": _broken(1),
    "error: model answers an error": _broken(2),
    "error: model refuses the input": _broken(3),
    "error: model answers another output": _broken(4),
    "error: model answers nothing": _broken(5),
    "error: model answers another datatype": _broken(6),
    "error: model raises, then answers": steps(_broken(1), _broken(0)),
}

_LARGEST = {"UINT8": 2**8, "UINT16": 2**16, "UINT32": 2**32, "UINT64": 2**64}
_LARGEST |= {"INT8": 2**7, "INT16": 2**15, "INT32": 2**31, "INT64": 2**63}

DATATYPES: dict[str, Ask] = {
    **{f"datatype: {name}": _echo(name, [0, top - 1]) for name, top in _LARGEST.items()},
    **{f"datatype: {name} too large": _echo(name, [top]) for name, top in _LARGEST.items()},
    "datatype: INT8 negative": _echo("INT8", [-128, -1]),
    "datatype: UINT8 negative": _echo("UINT8", [-1]),
    "datatype: INT32 1.0": _echo("INT32", [1.0]),
    "datatype: INT32 1.5": _echo("INT32", [1.5]),
    "datatype: INT32 as a string": _echo("INT32", ["1"]),
    "datatype: INT32 true": _echo("INT32", [True]),
    "datatype: BOOL": _echo("BOOL", [True, False]),
    "datatype: BOOL 1": _echo("BOOL", [1, 0]),
    "datatype: FP32": _echo("FP32", [0.1, 1e30, -0.0, 16777217]),
    "datatype: FP32 too large": _echo("FP32", [1e40]),
    "datatype: FP64": _echo("FP64", [0.1, 1e300, -0.0, 1]),
    "datatype: FP16 in JSON": _echo("FP16", [1.0]),
    "datatype: BYTES": _echo("BYTES", ["", "a", '\u00e9\u20ac\n"\\', "\u0000"]),
    "datatype: BYTES number": _echo("BYTES", [1]),
    "datatype: BYTES nested": _echo("BYTES", [["a"], ["b"]], [2]),
    "datatype: nothing": _echo("FP32", [], [0]),
    **{
        f"datatype: {name} binary": _echo_binary(name, np.array([0, 1, 2], dtype=kind).tobytes(), 3)
        for name, kind in (
            ("UINT8", "u1"),
            ("UINT16", "<u2"),
            ("UINT32", "<u4"),
            ("UINT64", "<u8"),
            ("INT8", "i1"),
            ("INT16", "<i2"),
            ("INT32", "<i4"),
            ("INT64", "<i8"),
            ("FP16", "<f2"),
            ("FP32", "<f4"),
            ("FP64", "<f8"),
        )
    },
    "datatype: BOOL binary": _echo_binary("BOOL", b"\x01\x00", 2),
    "datatype: BYTES binary": _echo_binary("BYTES", _bytes(b"", b"\xff\x00", b"abc"), 3),
    "datatype: nothing binary": _echo_binary("FP32", b"", 0),
    "datatype: FP16 binary, JSON answer": _echo_binary("FP16", b"\x00<", 1, is_out=False),
    "datatype: BYTES that are no text, JSON answer": _echo_binary("BYTES", _bytes(b"\xff"), 1, is_out=False),
    "datatype: BOOL byte 2": _echo_binary("BOOL", b"\x02", 1, is_out=False),
    "datatype: NaN, JSON answer": _echo_binary("FP32", np.array([np.nan, np.inf], "<f4").tobytes(), 2, is_out=False),
    "datatype: BYTES length too large": _echo_binary("BYTES", struct.pack("<I", 9) + b"a", 1),
    "datatype: BYTES one more element": _echo_binary("BYTES", _bytes(b"a", b"b"), 1),
    "datatype: BYTES 3 bytes": _echo_binary("BYTES", b"abc", 1),
}

_ZERO = {"Inference-Header-Content-Length": "0"}

BINARY: dict[str, Ask] = {
    "binary: JSON answer": binary("sums", {"inputs": [_head()]}, _ROW_BYTES),
    "binary: binary answer": binary("sums", {"inputs": [_head()], **_BINARY}, _ROW_BYTES),
    "binary: octet-stream": binary(
        "sums", {"inputs": [_head()]}, _ROW_BYTES, {"Content-Type": "application/octet-stream"}
    ),
    "binary: JSON request, binary answer": infer("sums", [_rows()], **_BINARY),
    "binary: one output binary": infer(
        "sums", [_rows()], outputs=[{"name": "OUTPUT", "parameters": {"binary_data": True}}, {"name": "SUM"}]
    ),
    "binary: binary_data false beside binary_data_output": infer(
        "sums", [_rows()], outputs=[{"name": "SUM", "parameters": {"binary_data": False}}], **_BINARY
    ),
    "binary: binary_data_output beside named outputs": infer("sums", [_rows()], outputs=[{"name": "SUM"}], **_BINARY),
    "binary: binary_data a string": infer(
        "sums", [_rows()], outputs=[{"name": "SUM", "parameters": {"binary_data": "yes"}}]
    ),
    "binary: size and data": binary("sums", {"inputs": [_head(data=[1, 2, 3, 4])]}, _ROW_BYTES),
    "binary: size too small for the shape": binary("sums", {"inputs": [_head(12)]}, _ROW_BYTES[:12]),
    "binary: size larger than the body": binary("sums", {"inputs": [_head()]}, _ROW_BYTES[:8]),
    "binary: body longer": binary("sums", {"inputs": [_head()]}, _ROW_BYTES + b"1234"),
    "binary: size a string": binary("sums", {"inputs": [_head("16")]}, _ROW_BYTES),
    "binary: size negative": binary("sums", {"inputs": [_head(-16)]}, _ROW_BYTES),
    "binary: header too large": http(
        "POST", "/v2/models/sums/infer", b"{}", {"Inference-Header-Content-Length": "10000"}
    ),
    "binary: header no number": http("POST", "/v2/models/sums/infer", b"{}", {"Inference-Header-Content-Length": "x"}),
    "binary: two inputs, one of them JSON": binary(
        "echo",
        {
            "inputs": [
                _tensor("IN_INT32", "INT32", [5]),
                {"name": "IN_BYTES", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 10}},
            ],
            "outputs": [{"name": "OUT_INT32"}, {"name": "OUT_BYTES"}],
        },
        _bytes(b"a", b"b"),
    ),
    "binary: raw": http("POST", "/v2/models/sums/infer", _ROW_BYTES, _ZERO),
    "binary: raw, 2 rows": http("POST", "/v2/models/sums/infer", _ROW_BYTES * 2, _ZERO),
    "binary: raw, too short": http("POST", "/v2/models/sums/infer", _ROW_BYTES[:12], _ZERO),
    "binary: raw, several inputs": http("POST", "/v2/models/text/infer", b"hello", _ZERO),
    "binary: raw, no batch": http("POST", "/v2/models/broken/infer", b"\t\0\0\0", _ZERO),
    "binary: raw, unknown model": http("POST", "/v2/models/nope/infer", b"hello", _ZERO),
}

_PLAIN = json.dumps({"id": "1", "inputs": [_rows()]}).encode()
_LONG = {"id": "1", "inputs": [_tensor("IN_INT64", "INT64", [7] * 2000)], "outputs": [{"name": "OUT_INT64"}]}


def _encoded(body: bytes, encoding: str) -> Ask:
    return http("POST", "/v2/models/sums/infer", body, {"Content-Encoding": encoding})


def _accept(encoding: str) -> Ask:
    return http("POST", "/v2/models/echo/infer", _LONG, {"Accept-Encoding": encoding})


COMPRESSION: dict[str, Ask] = {
    "compression: gzip request": _encoded(gzip.compress(_PLAIN), "gzip"),
    "compression: deflate request": _encoded(zlib.compress(_PLAIN), "deflate"),
    "compression: raw deflate request": _encoded(zlib.compress(_PLAIN)[2:-4], "deflate"),
    "compression: identity": _encoded(_PLAIN, "identity"),
    "compression: not gzip": _encoded(b"not gzip", "gzip"),
    "compression: br request": _encoded(_PLAIN, "br"),
    "compression: generate with gzip": _generate("text", gzip.compress(b'{"text_input":"a"}'), headers=_GZIP),
    "compression: gzip answer": _accept("gzip"),
    "compression: deflate answer": _accept("deflate"),
    "compression: either answer": _accept("gzip, deflate"),
    "compression: the better answer": _accept("gzip;q=0.5, deflate;q=0.9"),
    "compression: none": _accept("gzip;q=0"),
    "compression: br answer": _accept("br"),
    "compression: small answer": http("POST", "/v2/models/sums/infer", _PLAIN, {"Accept-Encoding": "gzip"}),
}

CLASSIFICATION: dict[str, Ask] = {
    **{f"classification: {count} of 3": _classify("PROBS", count) for count in (0, 1, 2, 3, 5)},
    "classification: two labels for three": _classify("PARTLY", 3, [[0.125, 0.25, 0.625]]),
    "classification: no labels": _classify("BARE", 3),
    "classification: INT32": _classify("WHOLE", 3, [[-1, 7, 3]]),
    "classification: FP64": _classify("DOUBLE", 3),
    "classification: two dimensions": _classify("GRID", 2),
    "classification: 2 rows": _classify("PROBS", 2, [_PROBABILITIES, [0.5, 0.25, 0.25]]),
    "classification: 2 rows, two dimensions": _classify("GRID", 2, [_PROBABILITIES, [0.5, 0.25, 0.25]]),
    "classification: equal ones": _classify("PROBS", 3, [[0.25, 0.5, 0.5]]),
    "classification: many digits": _classify("BARE", 3, [[0.123456789, 1 / 3, 1e20]]),
    "classification: NaN": http(
        "POST",
        "/v2/models/classes/infer",
        b'{"id":"1","inputs":[{"name":"INPUT","shape":[1,3],"datatype":"FP32","data":[NaN,1,2]}],'
        b'"outputs":[{"name":"BARE","parameters":{"classification":3}}]}',
    ),
    "classification: binary answer": _classify("PROBS", 2, binary_data=True),
    "classification: negative": _classify("PROBS", -1),
    "classification: a string": _classify("PROBS", "2"),
    "classification: a float": _classify("PROBS", 2.0),
    "classification: true": _classify("PROBS", True),
    "classification: beside another output": infer(
        "classes",
        [_tensor("INPUT", "FP32", _PROBABILITIES, [1, 3])],
        outputs=[{"name": "PROBS", "parameters": {"classification": 2}}, {"name": "BARE"}],
    ),
    "classification: of the request": infer(
        "classes", [_tensor("INPUT", "FP32", _PROBABILITIES, [1, 3])], parameters={"classification": 2}
    ),
}

GENERATE: dict[str, Ask] = {
    "generate: plain": _generate("text", {"text_input": "hello"}),
    "generate: id": _generate("text", {"text_input": "hello", "id": "abc"}),
    "generate: id a number": _generate("text", {"text_input": "hello", "id": 7}),
    "generate: version": http("POST", "/v2/models/text/versions/1/generate", {"text_input": "hello"}),
    "generate: unknown version": http("POST", "/v2/models/text/versions/9/generate", {"text_input": "hello"}),
    "generate: unknown model": _generate("nope", {"text_input": "hello"}),
    "generate: failed model": _generate("unloadable", {"INPUT": 1}),
    "generate: optional input": _generate("text", {"text_input": "hello", "suffix": "!"}),
    "generate: list of one": _generate("text", {"text_input": ["hello"]}),
    "generate: list of two for [1]": _generate("text", {"text_input": ["a", "b"]}),
    "generate: nested list": _generate("text", {"text_input": [["hello"]]}),
    "generate: empty list": _generate("text", {"text_input": []}),
    "generate: empty text": _generate("text", {"text_input": ""}),
    "generate: any characters": _generate("text", {"text_input": '\u00e9\u20ac\n"\\'}),
    "generate: number for BYTES": _generate("text", {"text_input": 7}),
    "generate: null": _generate("text", {"text_input": None}),
    "generate: object for an input": _generate("text", {"text_input": {"a": 1}}),
    "generate: no inputs": _generate("text", {}),
    "generate: required input missing": _generate("text", {"suffix": "!"}),
    "generate: unknown key": _generate("text", {"text_input": "a", "unknown": "x"}),
    "generate: unknown key, number": _generate("text", {"text_input": "a", "unknown": 1.5}),
    "generate: unknown key, list": _generate("text", {"text_input": "a", "unknown": [1]}),
    "generate: unknown key, null": _generate("text", {"text_input": "a", "unknown": None}),
    "generate: parameters": _generate("text", {"text_input": "a", "parameters": {"x": 1}}),
    "generate: parameters with a list": _generate("text", {"text_input": "a", "parameters": {"x": [1]}}),
    "generate: parameters a number": _generate("text", {"text_input": "a", "parameters": 7}),
    "generate: input inside parameters": _generate("text", {"parameters": {"text_input": "inside"}}),
    "generate: model_name": _generate("text", {"text_input": "a", "model_name": "x"}),
    "generate: no JSON": _generate("text", b"not json"),
    "generate: empty body": _generate("text", b""),
    "generate: JSON list": _generate("text", [1]),
    "generate: key twice": _generate("text", b'{"text_input":"a","text_input":"b"}'),
    "generate: trailing data": _generate("text", b'{"text_input":"a"} x'),
    "generate: GET": http("GET", "/v2/models/text/generate"),
    "generate: trailing slash": _generate("text", {"text_input": "a"}, "/"),
    "generate: text/plain": _generate("text", {"text_input": "a"}, headers={"Content-Type": "text/plain"}),
    "generate: event-stream accepted": _generate("text", {"text_input": "a"}, headers={"Accept": "text/event-stream"}),
    "generate: row": _generate("sums", {"INPUT": [1, 2, 3, 4]}),
    "generate: two rows": _generate("sums", {"INPUT": [1, 2, 3, 4, 5, 6, 7, 8]}),
    "generate: outputs left out by the model": _generate("echo", {"IN_INT32": [1, 2]}),
    "generate: FP16": _generate("echo", {"IN_FP16": [1]}),
    "generate: model raises": _generate("broken", {"INPUT": 1}),
    "generate: model answers an error": _generate("broken", {"INPUT": 2}),
    "generate: model refuses the input": _generate("broken", {"INPUT": 3}),
    "generate: model is fine": _generate("broken", {"INPUT": 8}),
    "generate: decoupled, one answer": _generate("stream", {"text_input": "a"}),
    "generate: decoupled, two answers": _generate("stream", {"text_input": "a", "count": 2}),
    "generate: decoupled, no answer": _generate("stream", {"text_input": "a", "count": 0}),
    "generate: decoupled, error": _generate("stream", {"text_input": "a", "fail_at": 0}),
    "generate: decoupled, raises": _generate("stream", {"text_input": "a", "raise": True}),
    "generate seen: text": _seen({"text_input": "hello"}),
    "generate seen: texts": _seen({"text_input": ["a", "b"]}),
    "generate seen: number": _seen({"number": 3}),
    "generate seen: numbers": _seen({"number": [1, 2, 3]}),
    "generate seen: float for INT64": _seen({"number": 1.5}),
    "generate seen: string for INT64": _seen({"number": "3"}),
    "generate seen: true for INT64": _seen({"number": True}),
    "generate seen: mixed": _seen({"number": [1, "a"]}),
    "generate seen: too large": _seen({"number": 2**63}),
    "generate seen: int for FP32": _seen({"ratio": 1}),
    "generate seen: NaN": _seen(b'{"ratio":NaN}'),
    "generate seen: FP32 too large": _seen({"ratio": 1e40}),
    "generate seen: boolean": _seen({"flag": True}),
    "generate seen: 1 for BOOL": _seen({"flag": 1}),
    "generate seen: 256 for UINT8": _seen({"small": 256}),
    "generate seen: -1 for UINT8": _seen({"small": -1}),
    "generate seen: flat for [2,2]": _seen({"grid": [1, 2, 3, 4]}),
    "generate seen: nested for [2,2]": _seen({"grid": [[1, 2], [3, 4]]}),
    "generate seen: parameters": _seen({"text_input": "a", "b": True, "i": 3, "f": 1.5, "parameters": {"s": "x"}}),
}

GENERATE_STREAM: dict[str, Ask] = {
    "generate_stream: one answer": _generate("text", {"text_input": "hello"}, "_stream"),
    "generate_stream: id": _generate("text", {"text_input": "hello", "id": "abc"}, "_stream"),
    "generate_stream: missing input": _generate("text", {}, "_stream"),
    "generate_stream: wrong type": _generate("text", {"text_input": 7}, "_stream"),
    "generate_stream: no JSON": _generate("text", b"nope", "_stream"),
    "generate_stream: wrong shape": _generate("text", {"text_input": ["a", "b"]}, "_stream"),
    "generate_stream: unknown model": _generate("nope", {"text_input": "a"}, "_stream"),
    "generate_stream: unknown version": http("POST", "/v2/models/text/versions/9/generate_stream", {"text_input": "a"}),
    "generate_stream: GET": http("GET", "/v2/models/text/generate_stream"),
    "generate_stream: json accepted": _generate(
        "text", {"text_input": "a"}, "_stream", headers={"Accept": "application/json"}
    ),
    "generate_stream: gzip asked for": _generate(
        "text", {"text_input": "a"}, "_stream", headers={"Accept-Encoding": "gzip"}
    ),
    "generate_stream: decoupled, one": _generate("stream", {"text_input": "a"}, "_stream"),
    "generate_stream: decoupled, three": _generate("stream", {"text_input": "a", "count": 3, "id": "abc"}, "_stream"),
    "generate_stream: decoupled, none": _generate("stream", {"text_input": "a", "count": 0}, "_stream"),
    "generate_stream: version": http(
        "POST", "/v2/models/stream/versions/1/generate_stream", {"text_input": "a", "count": 2}
    ),
    "generate_stream: error first": _generate("stream", {"text_input": "a", "count": 3, "fail_at": 0}, "_stream"),
    "generate_stream: error in the middle": _generate(
        "stream", {"text_input": "a", "count": 3, "fail_at": 1}, "_stream"
    ),
    "generate_stream: error last": _generate("stream", {"text_input": "a", "count": 3, "fail_at": 2}, "_stream"),
    "generate_stream: model raises": _generate("stream", {"text_input": "a", "raise": True}, "_stream"),
    "generate_stream: required input missing": _generate("stream", {"count": 2}, "_stream"),
    "generate_stream: empty final response": _generate(
        "stream", {"text_input": "a", "count": 2, "triton_enable_empty_final_response": True}, "_stream"
    ),
    "generate_stream: model is no stream and raises": _generate("broken", {"INPUT": 1}, "_stream"),
}

REPOSITORY: dict[str, Ask] = {
    "repository: index": http("POST", "/v2/repository/index", b""),
    "repository: index, empty object": http("POST", "/v2/repository/index", {}),
    "repository: index of ready ones": http("POST", "/v2/repository/index", {"ready": True}),
    "repository: index, ready a string": http("POST", "/v2/repository/index", {"ready": "yes"}),
    "repository: index, no JSON": http("POST", "/v2/repository/index", b"nope"),
    "repository: index, GET": http("GET", "/v2/repository/index"),
    "repository: load an unknown model": http("POST", "/v2/repository/models/nope/load"),
    "repository: unload an unknown model": http("POST", "/v2/repository/models/nope/unload"),
    "repository: load what cannot be loaded": http("POST", "/v2/repository/models/unloadable/load"),
    "repository: load with a configuration": http(
        "POST", "/v2/repository/models/text/load", {"parameters": {"config": json.dumps({"max_batch_size": 1})}}
    ),
    "repository: load with an unknown parameter": http(
        "POST", "/v2/repository/models/text/load", {"parameters": {"x": 1}}
    ),
    "repository: unload, then load": steps(
        http("POST", "/v2/repository/models/text/unload"),
        http("GET", "/v2/models/text/ready"),
        http("GET", "/v2/models/text"),
        _generate("text", {"text_input": "a"}),
        http("POST", "/v2/repository/index", b""),
        http("POST", "/v2/repository/models/text/unload", {"parameters": {"unload_dependents": True}}),
        http("POST", "/v2/repository/models/text/load", {}),
        http("GET", "/v2/models/text/ready"),
        _generate("text", {"text_input": "a"}),
    ),
}

OTHERS: dict[str, Ask] = {
    "other: system shared memory": http("GET", "/v2/systemsharedmemory/status"),
    "other: CUDA shared memory": http("GET", "/v2/cudasharedmemory/status"),
    "other: register shared memory": http(
        "POST", "/v2/systemsharedmemory/region/x/register", {"key": "/nope", "offset": 0, "byte_size": 16}
    ),
    "other: trace settings": http("GET", "/v2/trace/setting"),
    "other: log settings": http("GET", "/v2/logging"),
}

STATISTICS: dict[str, Ask] = {
    "statistics: one row": counted("sums", _sums()),
    "statistics: three rows, twice": counted("sums", *[infer("sums", [_rows(3)])] * 2),
    "statistics: refused before the model": counted("sums", _sums(shape=[1, 5])),
    "statistics: a model that raises": counted("broken", _broken(1), _broken(8)),
    "statistics: a decoupled model": counted("stream", _generate("stream", {"text_input": "a", "count": 3}, "_stream")),
    "statistics: unknown model": http("GET", "/v2/models/nope/stats"),
}

_TYPED = {"fp32_contents": [1, 2, 3, 4]}


def _message(model: str = "sums", ident: str = "1", **changed: Any) -> pb.ModelInferRequest:
    """A raw request with one row for ``sums``, or with these fields."""
    message = pb.ModelInferRequest(model_name=model, id=ident, model_version=changed.get("version", ""))
    for name, datatype, shape, raw in changed.get("inputs", [("INPUT", "FP32", [1, 4], _ROW_BYTES)]):
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw)
    for name in changed.get("outputs", ()):
        message.outputs.add(name=name)
    for key, value in changed.get("parameters", {}).items():
        setattr(message.parameters[key], "bool_param" if isinstance(value, bool) else "string_param", value)
    return message


def _typed(shape: Any = (1, 4), **contents: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="sums", id="1")
    tensor = message.inputs.add(name="INPUT", datatype="FP32", shape=shape)
    for key, values in contents.items():
        getattr(tensor.contents, key).extend(values)
    return message


def _mixed() -> pb.ModelInferRequest:
    message = _typed(**_TYPED)
    message.raw_input_contents.append(_ROW_BYTES)
    return message


def _words(ident: str = "1", count: int = 1, fail_at: int | None = None, **parameters: Any) -> pb.ModelInferRequest:
    inputs = [("text_input", "BYTES", [1], _bytes(b"a")), ("count", "INT32", [1], struct.pack("<i", count))]
    if fail_at is not None:
        inputs.append(("fail_at", "INT32", [1], struct.pack("<i", fail_at)))
    return _message("stream", ident, inputs=inputs, parameters=parameters)


_FINAL = {"triton_enable_empty_final_response": True}
_UNKNOWN = _message("nope", "7")

GRPC: dict[str, Ask] = {
    "grpc: ServerLive": rpc("ServerLive", pb.ServerLiveRequest()),
    "grpc: ModelReady": rpc("ModelReady", pb.ModelReadyRequest(name="sums")),
    "grpc: ModelReady of an unknown model": rpc("ModelReady", pb.ModelReadyRequest(name="nope")),
    "grpc: ModelReady of a failed model": rpc("ModelReady", pb.ModelReadyRequest(name="unloadable")),
    "grpc: ModelMetadata": rpc("ModelMetadata", pb.ModelMetadataRequest(name="sums")),
    "grpc: ModelMetadata of an unknown model": rpc("ModelMetadata", pb.ModelMetadataRequest(name="nope")),
    "grpc: ModelConfig": rpc("ModelConfig", pb.ModelConfigRequest(name="stream")),
    "grpc: ModelConfig of an unknown model": rpc("ModelConfig", pb.ModelConfigRequest(name="nope")),
    "grpc: ModelStatistics of an unknown model": rpc("ModelStatistics", pb.ModelStatisticsRequest(name="nope")),
    "grpc: RepositoryIndex": rpc("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)),
    "grpc: load an unknown model": rpc("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nope")),
    "grpc: unload an unknown model": rpc("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="nope")),
    "grpc: raw": rpc("ModelInfer", _message()),
    "grpc: without an id": rpc("ModelInfer", _message(ident="")),
    "grpc: version": rpc("ModelInfer", _message(version="1")),
    "grpc: requested output": rpc("ModelInfer", _message(outputs=["SUM"])),
    "grpc: typed": rpc("ModelInfer", _typed(**_TYPED)),
    "grpc: raw and typed mixed": rpc("ModelInfer", _mixed()),
    "grpc: unknown model": rpc("ModelInfer", _UNKNOWN),
    "grpc: unknown version": rpc("ModelInfer", _message(version="9")),
    "grpc: unknown output": rpc("ModelInfer", _message(outputs=["NOPE"])),
    "grpc: unknown input": rpc("ModelInfer", _message(inputs=[("NOPE", "FP32", [1, 4], _ROW_BYTES)])),
    "grpc: wrong shape": rpc("ModelInfer", _message(inputs=[("INPUT", "FP32", [1, 2], _ROW_BYTES[:8])])),
    "grpc: wrong datatype": rpc("ModelInfer", _message(inputs=[("INPUT", "INT32", [1, 4], _ROW_BYTES)])),
    "grpc: raw too short": rpc("ModelInfer", _message(inputs=[("INPUT", "FP32", [1, 4], _ROW_BYTES[:8])])),
    "grpc: typed too short": rpc("ModelInfer", _typed(fp32_contents=[1.0])),
    "grpc: typed in another field": rpc("ModelInfer", _typed(int_contents=[1, 2, 3, 4])),
    "grpc: no inputs": rpc("ModelInfer", pb.ModelInferRequest(model_name="sums", id="1")),
    "grpc: decoupled": rpc("ModelInfer", _words()),
    "grpc: model raises": rpc("ModelInfer", _message("broken", inputs=[("INPUT", "INT32", [1], b"\1\0\0\0")])),
    "grpc: model refuses the input": rpc(
        "ModelInfer", _message("broken", inputs=[("INPUT", "INT32", [1], b"\3\0\0\0")])
    ),
    "grpc: trace settings": rpc("TraceSetting", pb.TraceSettingRequest()),
    "grpc: system shared memory": rpc("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
}

STREAM: dict[str, Ask] = {
    "stream: no request": stream(),
    "stream: one": stream(_message()),
    "stream: two": stream(_message(ident="1"), _message(ident="2")),
    "stream: empty final response of an ordinary model": stream(_message(parameters=_FINAL)),
    "stream: empty final response asked for by a text": stream(
        _message(parameters={"triton_enable_empty_final_response": "yes"})
    ),
    "stream: unknown model, then a good one": stream(_UNKNOWN, _message()),
    "stream: model raises, then a good one": stream(
        _message("broken", "7", inputs=[("INPUT", "INT32", [1], b"\1\0\0\0")]), _message()
    ),
    "stream: wrong shape, then a good one": stream(
        _message(ident="7", inputs=[("INPUT", "FP32", [1, 2], _ROW_BYTES[:8])]), _message()
    ),
    "stream: model raises, ends with the status": stream(
        _message("broken", "7", inputs=[("INPUT", "INT32", [1], b"\1\0\0\0")]),
        metadata={"triton_grpc_error": "true"},
    ),
    "stream: decoupled, one": stream(_words()),
    "stream: decoupled, three": stream(_words(count=3)),
    "stream: decoupled, none": stream(_words(count=0)),
    "stream: decoupled, with an empty final response": stream(_words(count=2, **_FINAL)),
    "stream: decoupled, none but the final response": stream(_words(count=0, **_FINAL)),
    "stream: decoupled, an error last": stream(_words(count=2, fail_at=1)),
}
