# SPDX-License-Identifier: Apache-2.0
"""The JSON that the routes speak, as JSON Schema.

Answers may grow members, so their schemas name what is there and forbid nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from modelyard.tensor import DATATYPES

Schema: TypeAlias = dict[str, Any]


def ref(name: str, kind: str = "schemas") -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def list_of(items: Schema, **more: Any) -> Schema:
    """A list of what ``items`` says."""
    return {"type": "array", "items": items, **more}


def object_of(properties: Mapping[str, Schema], required: Iterable[str] | None = None, **more: Any) -> Schema:
    """An object; all properties are required unless told otherwise."""
    names = list(properties) if required is None else list(required)
    found: Schema = {"type": "object", "properties": dict(properties), **more}
    return found | {"required": names} if names else found


def text(description: str = "", **more: Any) -> Schema:
    """A string."""
    return {"type": "string", **({"description": description} if description else {}), **more}


_NAMES: Final = list_of(text())
_DATATYPE: Final = text(enum=list(DATATYPES))
_DIMENSIONS: Final = list_of({"type": "integer", "minimum": 0}, description="Row-major; the first is the rows.")
_DATA: Final = list_of(
    {"type": ["number", "string", "boolean", "array", "null"]},
    description="Row-major, flat or nested as the shape says. `null` among floats is NaN.",
)
_SPEC: Final = object_of(
    {
        "name": text(),
        "datatype": _DATATYPE,
        "shape": list_of({"type": "integer"}, description="-1 is a variable dimension."),
        "parameters": {"type": "object", "description": "`content_type`: what the datatype does not say."},
    },
    required=("name", "datatype", "shape"),
)
_GENERATION: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_PERCENT: Final[Schema] = {"type": "number", "minimum": 0, "maximum": 100}
_WEIGHTS: Final[Schema] = {"type": "object", "additionalProperties": _PERCENT}
_REVISION: Final[Schema] = {
    "type": ["integer", "string"],
    "minLength": 1,
    "description": "A revision, by number or label.",
}
_REASON: Final = text("What the change is for, for the history.", maxLength=4096)
_OPENAI_MODEL: Final = {
    "id": text(),
    "object": {"const": "model"},
    "created": {"type": "integer", "description": "Seconds since 1970."},
    "owned_by": text(),
}
_V1_BODY: Final = {
    "signature_name": {
        "type": ["string", "null"],
        "description": "Which of the model's signatures is asked; of no effect on a model with one of no SavedModel.",
    },
    "outputs": {
        "type": ["array", "null"],
        "items": text(),
        "description": "Names of the outputs wanted; the model's default without.",
    },
    "parameters": {"anyOf": [ref("Parameters"), {"type": "null"}]},
}
_V1_FORMS: Final = {
    "instances": {"type": "array", "minItems": 1, "items": {}, "description": "One row each."},
    "inputs": {"type": ["object", "array"], "description": "A column each, by input name."},
}

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": object_of({"error": text("One sentence: what, where, expected, got.")}),
    "AdminError": object_of(
        {
            "error": text("One sentence: what, where, expected, got."),
            "code": text("Names the kind of error; stable."),
            "problems": list_of(text(), description="One sentence each, beginning with the key's path."),
        },
        required=("error", "code"),
    ),
    "OpenAIError": object_of(
        {
            "error": object_of(
                {
                    "message": text("One sentence: what, where, expected, got."),
                    "type": text("Kind of error, in OpenAI's words."),
                    "param": {"type": ["string", "null"], "description": "Which member of the body."},
                    "code": {"description": "Names the kind of error; stable where the platform has found it."},
                },
            )
        },
    ),
    "OpenAIRequest": object_of(
        {
            "model": text("A model, `model:revision`, `model:label` or an adapter.", minLength=1),
            "stream": {"type": "boolean", "description": "Answer with server-sent events."},
        },
        required=("model",),
        description="Besides, whatever the route takes in OpenAI's API and the model's backend knows.",
    ),
    "OpenAIForm": object_of({"model": text(minLength=1), "file": text(format="binary")}, required=("model", "file")),
    "OpenAIResponse": {"type": "object", "description": "As in OpenAI's API."},
    "MLflowError": object_of(
        {
            "error_code": text("MLflow's name of the kind of error."),
            "message": text("One sentence: what, where, expected, got."),
            "sqlstate": text(),
            "error_class": text(),
        },
        required=("error_code", "message"),
    ),
    "Parameters": {
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean"]},
        "description": "`timeout` (µs), `priority`, `binary_data_output` and `content_type` speak to the server, so "
        "does `signature_name` where the model has several signatures; all others are the model's.",
    },
    "RequestInput": object_of(
        {
            "name": text(minLength=1),
            "shape": _DIMENSIONS,
            "datatype": _DATATYPE,
            "data": _DATA,
            "parameters": ref("Parameters"),
        },
        required=("name", "shape", "datatype"),
        description="With `binary_data_size` among the parameters in place of `data`, the bytes follow the JSON.",
    ),
    "RequestedOutput": object_of({"name": text(), "parameters": ref("Parameters")}, required=("name",)),
    "InferRequest": object_of(
        {
            "id": text("Comes back in the answer."),
            "parameters": ref("Parameters"),
            "inputs": list_of(ref("RequestInput")),
            "outputs": list_of(
                ref("RequestedOutput"), description="The outputs wanted, in order; the model's default without."
            ),
        },
        required=("inputs",),
    ),
    "ResponseOutput": object_of(
        {
            "name": text(),
            "shape": _DIMENSIONS,
            "datatype": _DATATYPE,
            "data": list_of({"type": ["number", "string", "boolean"]}, description="Flat, row-major."),
            "parameters": ref("Parameters"),
        },
        required=("name", "shape", "datatype"),
    ),
    "InferResponse": object_of(
        {
            "model_name": text(),
            "model_version": text(),
            "id": text(),
            "parameters": ref("Parameters"),
            "outputs": list_of(ref("ResponseOutput")),
        },
        required=("model_name", "outputs"),
    ),
    "ModelMetadata": object_of(
        {
            "name": text(),
            "versions": _NAMES,
            "platform": text("The framework."),
            "inputs": list_of(_SPEC),
            "outputs": list_of(_SPEC),
        }
    ),
    "ModelReady": object_of({"name": text(), "ready": {"type": "boolean"}}),
    "ServerMetadata": object_of({"name": text(), "version": text(), "extensions": _NAMES}),
    "Live": object_of({"live": {"type": "boolean"}}),
    "Ready": object_of({"ready": {"type": "boolean"}}),
    "Alive": object_of({"status": {"const": "alive"}}),
    "PredictRequest": {
        "type": "object",
        "properties": {**_V1_FORMS, **_V1_BODY},
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "PredictResponse": {
        "type": "object",
        "properties": {"predictions": {"type": "array", "description": "One for each row."}, "outputs": {}},
        "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
    },
    "InvocationsRequest": {
        "type": "object",
        "properties": {
            "dataframe_split": object_of(
                {"columns": {"type": "array"}, "index": {}, "data": list_of({"type": "array"})},
                required=("data",),
            ),
            "dataframe_records": list_of({"type": "object"}, minItems=1),
            "instances": {},
            "inputs": {},
            "params": {"type": "object", "description": "Parameters of the model."},
        },
        "oneOf": [{"required": [f]} for f in ("dataframe_split", "dataframe_records", "instances", "inputs")],
    },
    "InvocationsResponse": object_of(
        {"predictions": {"description": "Records of a table, an array, or arrays by output name."}}
    ),
    "ExamplesRequest": object_of(
        {
            "signature_name": {"type": ["string", "null"], "description": "Which of the model's signatures is asked."},
            "examples": list_of(ref("Example"), minItems=1),
            "context": {**ref("Example"), "description": "Features of all examples that have none of that name."},
        },
        required=("examples",),
    ),
    "Example": {
        "type": "object",
        "description": "Features by name: one value or a list of them, all integers, all numbers with a point, or all "
        'texts; bytes are `{"b64": "…"}`.',
        "additionalProperties": {"type": ["number", "string", "boolean", "object", "array"]},
    },
    "ClassifyResponse": object_of(
        {"results": list_of(list_of({"type": "array"}), description="For each example a list of `[label, score]`.")}
    ),
    "RegressResponse": object_of({"results": list_of({"type": "number"}, description="A number for each example.")}),
    "ExplainResponse": object_of({"explanations": {"description": "Laid out as predictions or outputs are."}}),
    "ModelList": object_of({"models": _NAMES, "object": {"const": "list"}, "data": list_of(object_of(_OPENAI_MODEL))}),
    "ModelStatus": object_of(
        {
            "name": text(),
            "ready": {"type": "boolean"},
            **_OPENAI_MODEL,
            "model_version_status": list_of({"type": "object"}, description="As TensorFlow Serving has it."),
        }
    ),
    "Model": object_of(
        {
            "name": text(),
            "framework": text(),
            "uri": text("Where its artifact is."),
            "owner": text(
                "`declared` in the configuration file, `registered` at run time, or `reloaded` from a list of models "
                "that a client of TensorFlow Serving has sent."
            ),
            "state": text(),
            "reason": text("Why it is in this state; empty when ready."),
            "version": text("Number of the active revision; empty before there is one."),
            "replicas_ready": {"type": "integer"},
            "replicas_wanted": {"type": "integer"},
            "url_path": text("Where to send requests."),
            "created_at": text("ISO 8601, UTC."),
            "updated_at": text("ISO 8601, UTC."),
            "inputs": list_of(_SPEC),
            "outputs": list_of(_SPEC),
            "message": text("What the last change was for."),
            "generation": {"type": "integer", "description": "Counts the changes of what is wanted of it."},
            "traffic": {**_WEIGHTS, "description": "Percent by revision; those with 0 run for who asks for them."},
            "labels": {"type": "object", "additionalProperties": text(), "description": "Revision by label."},
            "rollout": {
                "anyOf": [ref("Rollout"), {"type": "null"}],
                "description": "The one on its way, or the last one.",
            },
            "shadow": {"anyOf": [ref("Shadow"), {"type": "null"}], "description": "Who gets copies of the requests."},
            "scaling": {
                "anyOf": [ref("Scaling"), {"type": "null"}],
                "description": "What was last decided of its number of replicas; only where one model is asked for.",
            },
        }
    ),
    "Rollout": object_of(
        {
            "to": {"type": "integer", "description": "Number of its revision."},
            "state": text(enum=["waiting", "running", "paused", "promoted", "rolled_back"]),
            "steps": list_of(_PERCENT),
            "step": {"type": "integer", "description": "Index of the step it is at; -1 before the first."},
            "since": text("When that began, ISO 8601, UTC."),
            "interval_s": {"type": "number"},
            "min_requests": {"type": "integer"},
            "gates": {"type": "object"},
            "base": {**_WEIGHTS, "description": "The weights before it."},
            "reason": text("Why it is where it is."),
            "measured": {"type": "object", "additionalProperties": {"type": "number"}},
        }
    ),
    "Shadow": object_of(
        {
            "revision": {"type": "integer"},
            "percent": _PERCENT,
            "tolerance": {"type": "number", "minimum": 0},
            "measured": {
                "type": "object",
                "additionalProperties": {"type": "number"},
                "description": "What has become of the copies: `compared`, `different`, and `dropped` unsent.",
            },
        },
        required=("revision", "percent", "tolerance"),
    ),
    "TrafficPlan": object_of(
        {
            "weights": {
                **_WEIGHTS,
                "minProperties": 1,
                "description": "Percent by revision, number or label: whole tenths, 100 in sum. Left out, they stay.",
            },
            "shadow": {
                "anyOf": [
                    object_of(
                        {
                            "revision": _REVISION,
                            "percent": {"type": "number", "exclusiveMinimum": 0, "maximum": 100, "default": 100},
                            "tolerance": {"type": "number", "minimum": 0, "default": 1e-5},
                        },
                        required=("revision",),
                        additionalProperties=False,
                    ),
                    {"type": "null"},
                ],
                "description": "Who gets copies of the requests; null ends it. Left out, it stays.",
            },
            "message": _REASON,
        },
        required=(),
        additionalProperties=False,
    ),
    "RolloutPlan": object_of(
        {
            "to": _REVISION,
            "steps": list_of(_PERCENT, description="One after the other, each higher than the last."),
            "interval_s": {"type": "number", "minimum": 0, "description": "Seconds each step takes at least."},
            "min_requests": {
                "type": "integer",
                "minimum": 1,
                "description": "Requests each step has to see before its gates can be said to hold.",
            },
            "gates": object_of(
                {
                    "error_rate": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
                    "p99_ms": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    "shadow_mismatch": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
                },
                required=(),
                additionalProperties=False,
                description="What has to hold for it to go on; where one does not, it is rolled back.",
            ),
            "message": _REASON,
        },
        required=("to",),
        additionalProperties=False,
        description="What is left out is as in the model's `rollout`.",
    ),
    "LabelPlan": object_of(
        {"revision": _REVISION, "message": _REASON}, required=("revision",), additionalProperties=False
    ),
    "RevisionPlan": object_of(
        {"revision": {**_REVISION, "type": ["integer", "string", "null"]}, "message": _REASON},
        required=(),
        additionalProperties=False,
    ),
    "OnlyMessage": object_of({"message": _REASON}, required=(), additionalProperties=False),
    "Scaling": object_of(
        {
            "replicas": {"type": "integer", "description": "How many there should be."},
            "reason": text("Why, in one sentence."),
            "at": text("When; ISO 8601, UTC."),
            "load": object_of(
                {
                    "replicas": {"type": "integer", "description": "How many run."},
                    "in_flight": {"type": "number", "description": "Requests that wait or run."},
                    "requests_per_s": {"type": "number", "description": "Requests answered in a second."},
                    "queue_ms": {"type": "number", "description": "How long they waited, on average."},
                    "latency_ms": {"type": "number", "description": "How long they took, on average."},
                    "tokens_per_s": {"type": "number", "description": "Tokens generated in a second."},
                    "cpus": {"type": "number", "description": "CPUs that the replicas use."},
                    "gpu_percent": {
                        "type": ["number", "null"],
                        "description": "How busy their GPUs are, 0 to 100, on average; null where nobody knows.",
                    },
                    "own": {"type": "object", "description": "What the model reports, by name."},
                },
                description="What it follows from.",
            ),
        }
    ),
    "Pools": object_of(
        {
            "pools": list_of(
                object_of(
                    {
                        "name": text("Its Serve application."),
                        "revisions": {"type": "integer", "description": "How many live in it, loaded or not."},
                        "replicas": list_of(
                            object_of(
                                {
                                    "name": text("The replica."),
                                    "loaded": {"type": "integer", "description": "Models that are loaded now."},
                                    "memory_mb": {"type": "integer", "description": "What it takes, in MiB."},
                                    "memory_limit_mb": {"type": "integer", "description": "What it may take."},
                                    "hits": {"type": "integer", "description": "Calls that found their model."},
                                    "misses": {"type": "integer", "description": "Calls that waited for it."},
                                    "loads": {"type": "integer", "description": "Models that were loaded."},
                                    "evictions": {"type": "integer", "description": "Models that made room."},
                                    "load_p50_ms": {"type": "number", "description": "Half of its last loads."},
                                    "load_p99_ms": {"type": "number", "description": "99 of 100 of them."},
                                }
                            ),
                            description="Those that answer.",
                        ),
                    }
                )
            )
        }
    ),
    "Revisions": object_of(
        {
            "revisions": list_of(
                object_of(
                    {
                        "number": {"type": "integer", "description": "What the protocols call version."},
                        "digest": text("Identity of what it is made of."),
                        "created_at": text("ISO 8601, UTC."),
                        "actor": text("Who made it."),
                        "message": text("Why."),
                        "promoted_at": text("When it last got all traffic; empty before it ever did."),
                        "traffic": {"type": ["number", "null"], "description": "Percent; null where it does not run."},
                        "labels": _NAMES,
                        "state": text("Empty where it does not run."),
                        "reason": text("Why it is not ready."),
                        "changed": {
                            "type": "object",
                            "description": "What differs from the one before, by key: before and after.",
                        },
                    }
                ),
                description="Newest first.",
            )
        }
    ),
    "Events": object_of(
        {
            "events": list_of(
                object_of(
                    {
                        "id": {"type": "integer", "description": "Grows with time."},
                        "at": text("ISO 8601, UTC."),
                        "model": text("The model, which may be gone."),
                        "kind": text("`created`, `revised`, `step`, `promoted`, `rolled_back`, `traffic` and so on."),
                        "actor": text("Who."),
                        "message": text("Why."),
                        "detail": {"type": "object"},
                    }
                )
            )
        }
    ),
    "Plan": object_of(
        {
            "name": text(),
            "action": text(enum=["create", "revise", "change", "load", "nothing"]),
            "revision": {"type": "integer", "description": "The revision that this would be about."},
            "generation": {"type": "integer", "description": "Of the model as it is now; 0 for one that is new."},
            "changed": {"type": "object", "description": "What would differ, by key: before and after."},
            "rollout": {
                "anyOf": [ref("Rollout"), {"type": "null"}],
                "description": "How a new revision would get its traffic; null where it has it at once.",
            },
        },
        description="What registering would do.",
    ),
    "ModelOrPlan": {"anyOf": [ref("Model"), ref("Plan")]},
    "Models": object_of({"models": list_of(ref("Model"))}),
    "Change": object_of({"message": text("What the change is for, for the history.")}, required=()),
    "IndexRequest": object_of({"ready": {"type": "boolean", "description": "Only what is ready."}}, required=()),
    "Index": list_of(
        object_of(
            {
                "name": text(),
                "version": text(),
                "state": text(enum=["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]),
                "reason": text("Why it is not ready."),
            },
            required=("name", "version", "state"),
        )
    ),
    "RepositoryRequest": object_of({"parameters": ref("Parameters")}, required=()),
    "SignatureDef": object_of(
        {
            "model_spec": object_of({"name": text(), "signature_name": text(), "version": text()}),
            "metadata": object_of({"signature_def": {"type": "object"}}),
        }
    ),
    "GenerateRequest": {
        "type": "object",
        "properties": {"id": text(), "parameters": {"type": "object"}},
        "additionalProperties": {"type": ["string", "number", "boolean", "array", "null"]},
    },
    "GenerateResponse": object_of(
        {"id": text(), "model_name": text(), "model_version": text()}, required=("model_name", "model_version")
    ),
    "ModelConfig": object_of(
        {
            "name": text(),
            "backend": text(),
            "max_batch_size": {"type": "integer"},
            "input": list_of({"type": "object"}),
            "output": list_of({"type": "object"}),
        }
    ),
    "Statistics": object_of(
        {"model_stats": list_of(object_of({"name": text(), "version": text()}, additionalProperties=True))}
    ),
    "CloudEvent": object_of(
        {"specversion": text(), "id": text(), "type": text(), "source": text(), "data": {"type": "object"}},
        required=("specversion", "id", "type", "source"),
    ),
    "Document": {"type": "object", "description": "An OpenAPI 3.1 document."},
}

PARAMETERS: Final[Mapping[str, Schema]] = {
    "RequestId": {
        "name": "x-request-id",
        "in": "header",
        "description": "Names the request in the answer and in the server's log; a new one is made without.",
        "schema": text(minLength=1),
    },
    "Timeout": {
        "name": "x-request-timeout-ms",
        "in": "header",
        "description": "The deadline, in milliseconds; the model's own limit counts where it is shorter.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    "JsonLength": {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "Bytes of JSON at the body's start, tensors in binary follow; without it all of it is JSON.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "After": {
        "name": "after",
        "in": "query",
        "description": "Id of an event: those after it, oldest first, as soon as there is one, or none after some "
        "seconds. Left out, the latest, newest first.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Limit": {
        "name": "limit",
        "in": "query",
        "description": "How many at most.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    },
    "Watch": {
        "name": "watch",
        "in": "query",
        "description": "Send them as they come, as server-sent events, until the client goes away; `accept: "
        "text/event-stream` says the same.",
        "schema": {"type": "boolean", "default": False},
    },
    "LastEventId": {
        "name": "last-event-id",
        "in": "header",
        "description": "Where a stream that begins anew goes on; counts before `after`.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "DryRun": {
        "name": "dry_run",
        "in": "query",
        "description": "Change nothing: answer 200 with what the model would be then; for a registration, a plan.",
        "schema": {"type": "boolean", "default": False},
    },
    "ExpectedGeneration": {
        "name": "expected_generation",
        "in": "query",
        "description": "409 where the model is at another generation by now; one that is new is at 0.",
        "schema": _GENERATION,
    },
    "IfMatch": {
        "name": "if-match",
        "in": "header",
        "description": "The same, where the query does not say it; quotes around it are allowed.",
        "schema": _GENERATION,
    },
    "Message": {
        "name": "message",
        "in": "query",
        "description": "What the change is for, for the history.",
        "schema": text(),
    },
}

HEADERS: Final[Mapping[str, Schema]] = {
    "RequestId": {"description": "The caller's, or a new one.", "schema": text()},
    "RetryAfter": {"description": "Seconds until trying again is worth while.", "schema": {"type": "integer"}},
    "JsonLength": {
        "description": "Bytes of JSON at the body's start, where tensors in binary follow.",
        "schema": {"type": "integer"},
    },
}
