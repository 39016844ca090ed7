# SPDX-License-Identifier: Apache-2.0
"""What published clients can do with the platform, method by method, and the test that proves each.

``docs/clients.md`` is made of it: ``python tests/e2e/shared_platform/conformance/methods.py``. A method that a client
has and this table has not fails ``tests/docs``, so that a new release of a client is looked at before it is promised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
DOCUMENT: Final = HERE.parents[3] / "docs" / "clients.md"


@dataclass(frozen=True, slots=True)
class Entry:
    """One method of one client.

    Attributes:
        state: ``works``, ``unsupported`` (the answer says why) or ``not applicable`` (nothing is asked of a server).
        test: Its proof, ``file::test``; empty where not applicable.
        reason: Why it is not ``works``.
    """

    state: str
    test: str = ""
    reason: str = ""


def works(test: str) -> Entry:
    return Entry("works", test)


def unsupported(reason: str, test: str = "test_tritonclient_server.py::test_what_is_not_supported_says_so") -> Entry:
    return Entry("unsupported", test, reason)


LOCAL: Final = Entry("not applicable", reason="stays inside the client")
_TENSOR = unsupported(
    "tensors travel in the request",
    "test_tritonclient_server.py::test_a_tensor_in_shared_memory_is_refused_with_the_reason",
)
_SHARED = unsupported("tensors travel in the request")
_TRACE = unsupported("there are no trace settings to change at run time")
_LOG = unsupported("log settings cannot be changed at run time")
_MODEL, _SERVER, _INFER, _ASYNC = (f"test_tritonclient{part}.py::" for part in ("", "_server", "_infer", "_async"))
_PLUGIN = works(f"{_SERVER}test_a_plugin_is_asked_before_each_request_until_it_is_taken_away")
_LOADED = works(f"{_SERVER}test_a_model_is_really_unloaded_and_really_loaded")

_COMMON: Final = {
    "is_server_live": works(f"{_MODEL}test_server_is_live_and_ready"),
    "is_server_ready": works(f"{_MODEL}test_server_is_live_and_ready"),
    "is_model_ready": works(f"{_MODEL}test_model_is_ready_with_and_without_version"),
    "get_server_metadata": works(f"{_MODEL}test_server_metadata"),
    "get_model_metadata": works(f"{_MODEL}test_metadata_has_the_models_inputs"),
    "get_model_config": works(f"{_SERVER}test_the_configuration_has_the_batch_limit_and_the_inputs"),
    "get_inference_statistics": works(f"{_SERVER}test_statistics_grow_by_what_was_asked"),
    "get_model_repository_index": works(f"{_SERVER}test_the_index_has_every_model_of_the_file"),
    "infer": works(f"{_MODEL}test_the_answer_is_the_librarys"),
    "register_plugin": _PLUGIN,
    "plugin": _PLUGIN,
    "unregister_plugin": _PLUGIN,
    "close": works(f"{_SERVER}test_a_closed_client_asks_nothing_more"),
    "get_system_shared_memory_status": _SHARED,
    "register_system_shared_memory": _SHARED,
    "unregister_system_shared_memory": _SHARED,
    "get_cuda_shared_memory_status": _SHARED,
    "register_cuda_shared_memory": _SHARED,
    "unregister_cuda_shared_memory": _SHARED,
    "get_trace_settings": _TRACE,
    "update_trace_settings": _TRACE,
    "get_log_settings": _LOG,
    "update_log_settings": _LOG,
}
_HTTP: Final = dict.fromkeys(
    ("generate_request_body", "parse_response_body"),
    works(f"{_INFER}test_a_request_made_by_the_client_may_travel_by_another"),
)
_AIO: Final = dict.fromkeys(("load_model", "unload_model"), _LOADED)
_STREAM: Final = works(f"{_ASYNC}test_a_decoupled_model_answers_many_times_and_then_says_that_it_is_done")
_UNLOADED_HTTP = "../test_repository.py::test_an_unloaded_models_process_ends_and_a_loaded_ones_is_another"
_UNLOADED_GRPC = "../test_repository.py::test_over_grpc_a_model_is_unloaded_and_loaded"

_INPUT: Final = {
    "name": LOCAL,
    "datatype": LOCAL,
    "shape": LOCAL,
    "set_shape": LOCAL,
    "set_data_from_numpy": works(f"{_INFER}test_tensors_travel_as_json_or_binary"),
    "set_shared_memory": _TENSOR,
}
_OUTPUT: Final = {"name": LOCAL, "set_shared_memory": _TENSOR, "unset_shared_memory": LOCAL}
_RESULT: Final = {
    "as_numpy": works(f"{_MODEL}test_the_answer_is_the_librarys"),
    "get_response": works(f"{_MODEL}test_the_answer_is_the_librarys"),
    "get_output": works(f"{_INFER}test_tensors_travel_as_json_or_binary"),
}

_KSERVE: Final = "test_kserve.py::"
_KSERVE_COMMON: Final = {
    "is_server_live": works(f"{_KSERVE}test_kserve_finds_server_and_model_live_and_ready"),
    "is_server_ready": works(f"{_KSERVE}test_kserve_finds_server_and_model_live_and_ready"),
    "is_model_ready": works(f"{_KSERVE}test_kserve_finds_server_and_model_live_and_ready"),
    "infer": works(f"{_KSERVE}test_kserves_answer_is_the_librarys"),
    "close": works(f"{_KSERVE}test_kserves_closed_client_asks_nothing_more"),
}

_EVENTS: Final = {
    "to_binary_event": works("test_cloudevents.py::test_a_binary_event_is_answered_with_one"),
    "from_binary_event": works("test_cloudevents.py::test_a_binary_event_is_answered_with_one"),
    "from_http_event": works("test_cloudevents.py::test_a_binary_event_is_answered_with_one"),
    "to_structured_event": works("test_cloudevents.py::test_a_structured_event_is_answered_with_one"),
    "from_structured_event": works("test_cloudevents.py::test_a_structured_event_is_answered_with_one"),
    **dict.fromkeys(
        ("to_binary", "from_binary", "to_structured", "from_structured", "from_http"),
        works("test_cloudevents.py::test_events_in_a_named_format_are_the_same"),
    ),
}

_CLIENT: Final = "InferenceServerClient"
_STUBS: Final = "tensorflow_serving.apis"
_SERVING: Final = "test_tensorflow_serving.py::"
METHODS: Final[Mapping[str, Mapping[str, Entry]]] = {
    f"tritonclient.http:{_CLIENT}": _COMMON
    | _HTTP
    | {
        "load_model": works(_UNLOADED_HTTP),
        "unload_model": works(_UNLOADED_HTTP),
        "async_infer": works(f"{_ASYNC}test_http_requests_in_flight_get_their_own_answers"),
    },
    f"tritonclient.http.aio:{_CLIENT}": _COMMON | _HTTP | _AIO,
    f"tritonclient.grpc:{_CLIENT}": _COMMON
    | {
        "load_model": works(_UNLOADED_GRPC),
        "unload_model": works(_UNLOADED_GRPC),
        "async_infer": works(f"{_ASYNC}test_a_grpc_request_in_flight_calls_back"),
        "start_stream": _STREAM,
        "async_stream_infer": _STREAM,
        "stop_stream": works(f"{_ASYNC}test_stopping_a_stream_waits_for_its_answers"),
    },
    f"tritonclient.grpc.aio:{_CLIENT}": _COMMON
    | _AIO
    | {"stream_infer": works(f"{_ASYNC}test_an_async_stream_has_the_answers_of_all_its_requests")},
    "tritonclient.http:InferAsyncRequest": {
        "get_result": works(f"{_ASYNC}test_http_requests_in_flight_get_their_own_answers")
    },
    "tritonclient.grpc._client:CallContext": {"cancel": works(f"{_ASYNC}test_a_cancelled_request_calls_back_at_once")},
    "tritonclient.http:InferInput": _INPUT,
    "tritonclient.grpc:InferInput": _INPUT,
    "tritonclient.http:InferRequestedOutput": _OUTPUT,
    "tritonclient.grpc:InferRequestedOutput": _OUTPUT,
    "tritonclient.http:InferResult": _RESULT | {"from_response_body": _HTTP["parse_response_body"]},
    "tritonclient.grpc:InferResult": _RESULT,
    "kserve:InferenceRESTClient": _KSERVE_COMMON | {"explain": works(f"{_KSERVE}test_the_rest_client_explains")},
    "kserve:InferenceGRPCClient": _KSERVE_COMMON,
    f"{_STUBS}.prediction_service_pb2_grpc:PredictionServiceStub": {
        "Predict": works(f"{_SERVING}test_predict"),
        **dict.fromkeys(
            ("Classify", "Regress", "MultiInference"), works(f"{_SERVING}test_classify_regress_and_several_at_once")
        ),
        "GetModelMetadata": works(f"{_SERVING}test_metadata_and_status"),
    },
    f"{_STUBS}.model_service_pb2_grpc:ModelServiceStub": {
        "GetModelStatus": works(f"{_SERVING}test_metadata_and_status"),
        "HandleReloadConfigRequest": works(f"{_SERVING}test_a_list_of_models_is_served_until_the_next_list"),
    },
    "cloudevents.core.bindings.http": _EVENTS,
}
"""By client (module and class, or a module whose functions count), then by method."""

_HEAD: Final = """\
<!-- Made by `python tests/e2e/shared_platform/conformance/methods.py` from the table in that file; do not edit. -->

# Published clients, method by method

Each client is used as published, against a running platform; the file and the test behind each line are below
`tests/e2e/shared_platform/conformance`. *unsupported* is answered with HTTP 501 or gRPC UNIMPLEMENTED and the reason.
*-*: that client has no such method.
"""
_TRITON: Final = ("tritonclient.http", "tritonclient.http.aio", "tritonclient.grpc", "tritonclient.grpc.aio")


def render() -> str:
    """The whole document."""
    four = [f"{module}:{_CLIENT}" for module in _TRITON]
    parts = [_HEAD, "## tritonclient\n", _table(_TRITON, [METHODS[name] for name in four])]
    for name, methods in METHODS.items():
        if name not in four:
            title = name.replace("._client", "").replace(":", " ")
            parts += [f"## {title}\n", _table(("answer",), [methods])]
    return "\n".join(parts)


def _table(titles: Iterable[str], columns: list[Mapping[str, Entry]]) -> str:
    names = dict.fromkeys(name for column in columns for name in column)
    titles = [f"`{title}`" if "." in title else title for title in titles]
    lines = [f"| method | {' | '.join(titles)} | why not | tests |", "|---" * (len(titles) + 3) + "|"]
    for name in names:
        entries = [column[name] for column in columns if name in column]
        states = [column[name].state if name in column else "-" for column in columns]
        reasons = dict.fromkeys(entry.reason for entry in entries)
        tests = dict.fromkeys(f"`{entry.test}`" for entry in entries if entry.test)
        lines.append(f"| `{name}` | {' | '.join(states)} | {'; '.join(reasons)} | {', '.join(tests)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(render())
