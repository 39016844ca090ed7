# SPDX-License-Identifier: Apache-2.0
"""The table of every HTTP route: what it takes, what it answers, and which errors of the tree it can end in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from modelyard.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidConfig,
    InvalidRequest,
    InvalidTensor,
    ModelFailed,
    ModelLoadError,
    ModelNotFound,
    ModelNotReady,
    ModelyardError,
    Overloaded,
    RouteNotFound,
    TooLarge,
    Unsupported,
    UnsupportedMediaType,
)
from modelyard.openai import ROUTES
from modelyard.protocol.openai import BARE, PREFIXES

Fault: TypeAlias = type[ModelyardError]

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
HTML: Final = "text/html"
EVENT: Final = "application/cloudevents+json"
EVENT_STREAM: Final = "text/event-stream"
FORM: Final = "multipart/form-data"
CSV: Final = "text/csv"

V1_VARIANTS: Final = ("", "/versions/{version}", "/labels/{version}")
V2_VARIANTS: Final = ("", "/versions/{version}")
_OPENAI_SUMMARIES: Final = {
    "chat/completions": "Continue a conversation",
    "completions": "Continue a text",
    "embeddings": "Vectors of texts",
    "rerank": "Documents in the order in which they fit a query",
    "score": "How well texts fit each other",
    "responses": "Continue a conversation, OpenAI's newer way",
    "audio/transcriptions": "Speech to text",
    "audio/translations": "Speech to English text",
    "tokenize": "Tokens of a text",
    "detokenize": "The text of tokens",
}

_FIND: Final[tuple[Fault, ...]] = (ModelNotFound, ModelNotReady)
_BODY: Final[tuple[Fault, ...]] = (InvalidRequest, TooLarge, UnsupportedMediaType)
_INFER: Final[tuple[Fault, ...]] = (
    *_FIND, *_BODY, InvalidTensor, Overloaded, ModelFailed, Unsupported, DeadlineExceeded,
)  # fmt: skip

_OIP: Final = "Open Inference Protocol"
_V1: Final = "KServe v1 and TensorFlow Serving"
_MLFLOW: Final = "MLflow"
_REPOSITORY: Final = "Model repository"
OPENAI: Final = "OpenAI"
NOT_THERE: Final = "Not supported"
_DEADLINE: Final = "Timeout"
_JSON_LENGTH: Final = "JsonLength"
_CHANGE: Final = ("DryRun", "ExpectedGeneration", "IfMatch")
"""Of whatever changes a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row of the table: a method and a path, and the same under each of the path's variants.

    Attributes:
        method: The HTTP method.
        path: As the routes write it; ``*`` is where a variant goes.
        name: Identifies it among all, for clients that are generated.
        tag: Heading under which it is shown.
        summary: What it does, in a few words.
        description: What a caller should know besides; Markdown.
        variants: What ``*`` stands for: nothing, a version, a label.
        body: Schema of what it takes; empty where it takes nothing.
        body_types: Media types of that.
        body_required: An empty body is refused.
        answers: Schema of the answer by status; empty for a body that is no JSON.
        answer_types: Media types of the answers.
        parameters: Headers and query parameters it looks at, by their names among the components.
        faults: Errors it can end in; every operation also has ``InternalError``, and what asks the controller
            ``Unavailable``.
    """

    method: str
    path: str
    name: str
    tag: str
    summary: str
    description: str = ""
    variants: tuple[str, ...] = ("",)
    body: str = ""
    body_types: tuple[str, ...] = (JSON,)
    body_required: bool = True
    answers: Mapping[int, str] = field(default_factory=lambda: {200: ""})
    answer_types: tuple[str, ...] = (JSON,)
    parameters: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    def routes(self) -> Iterator[tuple[str, str]]:
        """Path and a name of its own, for each variant."""
        for variant in self.variants:
            kind = variant.strip("/").partition("/")[0].removesuffix("s")
            yield self.path.replace("*", variant), f"{self.name}_of_{kind}" if kind else self.name


_MODEL_V2: Final = "/v2/models/{model}"
_MODEL_V1: Final = "/v1/models/{model}"
_MODEL_MLFLOW: Final = "/mlflow/{model}"
_PLATFORM: Final = "/platform/v1/models"

_UNSUPPORTED: Final = (
    ("system shared memory", "/v2/systemsharedmemory/status", ("GET",)),
    ("system shared memory", "/v2/systemsharedmemory/unregister", ("POST",)),
    ("system shared memory", "/v2/systemsharedmemory/region/{region}/status", ("GET",)),
    ("system shared memory", "/v2/systemsharedmemory/region/{region}/register", ("POST",)),
    ("system shared memory", "/v2/systemsharedmemory/region/{region}/unregister", ("POST",)),
    ("CUDA shared memory", "/v2/cudasharedmemory/status", ("GET",)),
    ("CUDA shared memory", "/v2/cudasharedmemory/unregister", ("POST",)),
    ("CUDA shared memory", "/v2/cudasharedmemory/region/{region}/status", ("GET",)),
    ("CUDA shared memory", "/v2/cudasharedmemory/region/{region}/register", ("POST",)),
    ("CUDA shared memory", "/v2/cudasharedmemory/region/{region}/unregister", ("POST",)),
    ("trace settings", "/v2/trace/setting", ("GET", "POST")),
    ("trace settings", "/v2/models/{model}/trace/setting", ("GET", "POST")),
    ("log settings", "/v2/logging", ("GET", "POST")),
)


def _openai_operation(route: str) -> Operation:
    is_form = route.startswith("audio/")
    return Operation(
        method="POST",
        path=f"*/{route}",
        name=f"openai_{route.replace('/', '_')}",
        tag=OPENAI,
        summary=_OPENAI_SUMMARIES[route],
        description="The name in the body picks the model; a model that does not answer this route says so with 400.",
        variants=(*PREFIXES, *(("",) if route in BARE else ())),
        body="OpenAIForm" if is_form else "OpenAIRequest",
        body_types=(FORM,) if is_form else (JSON,),
        answers={200: "OpenAIResponse"},
        answer_types=(JSON, EVENT_STREAM),
        parameters=(_DEADLINE,),
        faults=_INFER,
    )


OPERATIONS: Final[tuple[Operation, ...]] = (
    *map(_openai_operation, ROUTES),
    Operation(
        method="GET",
        path="/openai/v1/models",
        name="openai_models",
        tag=OPENAI,
        summary="The models that speak the protocol",
        answers={200: "OpenAIResponse"},
    ),
    Operation(
        method="GET",
        path="/openai/v1/models/{model}",
        name="openai_model",
        tag=OPENAI,
        summary="One of them",
        answers={200: "OpenAIResponse"},
        faults=_FIND,
    ),
    Operation(
        method="POST",
        path=f"{_MODEL_V2}*/infer",
        name="infer",
        tag=_OIP,
        summary="Ask a model",
        description=(
            "Tensors as JSON, or binary after the JSON, whose length the header `Inference-Header-Content-Length` "
            "then tells. With a value of 0 there the whole body is the model's single input. `NaN` and `Infinity` are "
            "read and written as bare tokens."
        ),
        variants=V2_VARIANTS,
        body="InferRequest",
        body_types=(JSON, BINARY, EVENT),
        answers={200: "InferResponse"},
        answer_types=(JSON, BINARY, EVENT),
        parameters=(_DEADLINE, _JSON_LENGTH),
        faults=_INFER,
    ),
    Operation(
        method="GET",
        path=f"{_MODEL_V2}*",
        name="model_metadata",
        tag=_OIP,
        summary="What a model takes and gives",
        variants=V2_VARIANTS,
        answers={200: "ModelMetadata"},
        faults=_FIND,
    ),
    Operation(
        method="GET",
        path=f"{_MODEL_V2}*/ready",
        name="model_ready",
        tag=_OIP,
        summary="Whether a model can answer now",
        variants=V2_VARIANTS,
        answers={200: "ModelReady"},
        faults=_FIND,
    ),
    Operation(
        method="GET",
        path="/v2/models",
        name="v2_models",
        tag=_OIP,
        summary="All models",
        answers={200: "ModelList"},
    ),
    Operation(
        method="GET",
        path="/v2",
        name="server_metadata",
        tag=_OIP,
        summary="Name, version and extensions of the server",
        answers={200: "ServerMetadata"},
    ),
    Operation(
        method="GET",
        path="/v2/health/live",
        name="live",
        tag=_OIP,
        summary="Whether the process runs",
        answers={200: "Live"},
    ),
    Operation(
        method="GET",
        path="/v2/health/ready",
        name="ready",
        tag=_OIP,
        summary="Whether requests can be answered now",
        answers={200: "Ready", 503: "Ready"},
    ),
    Operation(
        method="POST",
        path=f"{_MODEL_V1}*:predict",
        name="predict",
        tag=_V1,
        summary="Ask a model",
        description=(
            "`instances` has a row in each element: a value, a list, or an object by input or column name; the answer "
            "is `predictions`. `inputs` has a column in each; the answer is `outputs`."
        ),
        variants=V1_VARIANTS,
        body="PredictRequest",
        body_types=(JSON, EVENT),
        answers={200: "PredictResponse"},
        answer_types=(JSON, EVENT),
        parameters=(_DEADLINE,),
        faults=_INFER,
    ),
    Operation(
        method="POST",
        path=f"{_MODEL_V1}*:explain",
        name="explain",
        tag=_V1,
        summary="Ask a model why",
        description="501 where the model cannot explain.",
        variants=V1_VARIANTS,
        body="PredictRequest",
        body_types=(JSON, EVENT),
        answers={200: "ExplainResponse"},
        answer_types=(JSON, EVENT),
        parameters=(_DEADLINE,),
        faults=_INFER,
    ),
    *(
        Operation(
            method="POST",
            path=f"{_MODEL_V1}*:{name}",
            name=name,
            tag=_V1,
            summary=f"Ask a signature of a SavedModel for {what}",
            description="501 where the model is no SavedModel.",
            variants=V1_VARIANTS,
            body="ExamplesRequest",
            answers={200: f"{name.capitalize()}Response"},
            parameters=(_DEADLINE,),
            faults=_INFER,
        )
        for name, what in (("classify", "the classes of examples"), ("regress", "a number for each example"))
    ),
    Operation(
        method="GET",
        path=f"{_MODEL_V1}*",
        name="model_status",
        tag=_V1,
        summary="Whether a model can answer now",
        variants=V1_VARIANTS,
        answers={200: "ModelStatus"},
        faults=_FIND,
    ),
    Operation(
        method="GET",
        path=f"{_MODEL_V1}*/metadata",
        name="model_signature",
        tag=_V1,
        summary="What a model takes and gives, as TensorFlow Serving says it",
        variants=V1_VARIANTS,
        answers={200: "SignatureDef"},
        faults=_FIND,
    ),
    Operation(
        method="GET",
        path="/v1/models",
        name="v1_models",
        tag=_V1,
        summary="All models",
        answers={200: "ModelList"},
    ),
    Operation(
        method="POST",
        path=f"{_MODEL_MLFLOW}*/invocations",
        name="invocations",
        tag=_MLFLOW,
        summary="Ask a model, as MLflow's scoring server is asked",
        description=(
            "A table as `dataframe_split`, `dataframe_records` or CSV with a line of names; tensors as `inputs` "
            "or `instances`. `params` are the model's parameters."
        ),
        variants=V1_VARIANTS,
        body="InvocationsRequest",
        body_types=(JSON, CSV),
        answers={200: "InvocationsResponse"},
        parameters=(_DEADLINE,),
        faults=_INFER,
    ),
    *(
        Operation(
            method="GET",
            path=f"{_MODEL_MLFLOW}*/{name}",
            name=f"mlflow_{name}",
            tag=_MLFLOW,
            summary="Whether a model can answer now: an empty line",
            variants=V1_VARIANTS,
            faults=_FIND,
        )
        for name in ("ping", "health")
    ),
    Operation(
        method="GET",
        path=f"{_MODEL_MLFLOW}*/version",
        name="mlflow_version",
        tag=_MLFLOW,
        summary="The version of MLflow whose protocol this is, as plain text",
        variants=V1_VARIANTS,
        faults=(ModelNotFound,),
    ),
    Operation(
        method="GET",
        path=_PLATFORM,
        name="list_models",
        tag="Platform",
        summary="All models as an operator sees them",
        answers={200: "Models"},
    ),
    Operation(
        method="POST",
        path=_PLATFORM,
        name="register_model",
        tag="Platform",
        summary="Register a model, or change one",
        description="Answers when the change is kept, not when the model is ready: 201 for a new model, 200 for one "
        "that was there. With `dry_run=true` all is checked and nothing changed: the answer is a plan.",
        body="Registration",
        answers={200: "ModelOrPlan", 201: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, InvalidConfig, Conflict),
    ),
    Operation(
        method="GET",
        path=f"{_PLATFORM}/{{model}}",
        name="get_model",
        tag="Platform",
        summary="One model as an operator sees it",
        answers={200: "Model"},
        faults=(ModelNotFound,),
    ),
    Operation(
        method="GET",
        path=f"{_PLATFORM}/{{model}}/spec",
        name="get_model_spec",
        tag="Platform",
        summary="What would register a model again",
        description="Without what is a default. Environment variables of its `runtime` are in it, secrets too.",
        answers={200: "Registration"},
        faults=(ModelNotFound, ModelLoadError, Conflict),
    ),
    Operation(
        method="DELETE",
        path=f"{_PLATFORM}/{{model}}",
        name="unregister_model",
        tag="Platform",
        summary="Take a model away",
        description="202: it answers what it has accepted first; then it is not found any more.",
        answers={200: "Model", 202: "Model"},
        parameters=("Message", *_CHANGE),
        faults=(InvalidRequest, TooLarge, ModelNotFound, Conflict),
    ),
    Operation(
        method="POST",
        path=f"{_PLATFORM}/{{model}}/load",
        name="load_model",
        tag="Platform",
        summary="Have a model run, with its artifact as it now is",
        description="200 where it runs already with these contents, else 202.",
        body="Change",
        body_required=False,
        answers={200: "Model", 202: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, ModelNotFound, ModelLoadError, Conflict),
    ),
    Operation(
        method="POST",
        path=f"{_PLATFORM}/{{model}}/unload",
        name="unload_model",
        tag="Platform",
        summary="Have nothing of a model run until it is loaded again",
        description="200 where nothing of it runs, else 202: it answers what it has accepted first.",
        body="Change",
        body_required=False,
        answers={200: "Model", 202: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, ModelNotFound, Conflict),
    ),
    Operation(
        method="PUT",
        path=f"{_PLATFORM}/{{model}}/traffic",
        name="set_traffic",
        tag="Platform",
        summary="Send a model's traffic elsewhere",
        description="At once; for steps there are rollouts.",
        body="TrafficPlan",
        answers={200: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, InvalidConfig, ModelNotFound, Conflict),
    ),
    Operation(
        method="PUT",
        path=f"{_PLATFORM}/{{model}}/labels/{{label}}",
        name="set_label",
        tag="Platform",
        summary="Point a label at a revision",
        description="The revision then runs also without traffic.",
        body="LabelPlan",
        answers={200: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, InvalidConfig, ModelNotFound, Conflict),
    ),
    Operation(
        method="DELETE",
        path=f"{_PLATFORM}/{{model}}/labels/{{label}}",
        name="remove_label",
        tag="Platform",
        summary="Take a label away",
        answers={200: "Model"},
        parameters=("Message", *_CHANGE),
        faults=(InvalidRequest, InvalidConfig, ModelNotFound, Conflict, TooLarge),
    ),
    Operation(
        method="POST",
        path=f"{_PLATFORM}/{{model}}/rollout",
        name="roll_out",
        tag="Platform",
        summary="Bring a revision on its way to all traffic",
        description="202 while it goes on.",
        body="RolloutPlan",
        answers={200: "Model", 202: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, InvalidConfig, ModelNotFound, Conflict),
    ),
    Operation(
        method="POST",
        path=f"{_PLATFORM}/{{model}}/rollout/abort",
        name="abort_rollout",
        tag="Platform",
        summary="Take a rollout back",
        description="Its revision loses its traffic. Refused where none is on its way.",
        body="OnlyMessage",
        body_required=False,
        answers={200: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, ModelNotFound, Conflict),
    ),
    Operation(
        method="POST",
        path=f"{_PLATFORM}/{{model}}/rollout/pause",
        name="pause_rollout",
        tag="Platform",
        summary="Keep a rollout at its step",
        description="Its gates go on holding.",
        body="OnlyMessage",
        body_required=False,
        answers={200: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, ModelNotFound, Conflict),
    ),
    Operation(
        method="POST",
        path=f"{_PLATFORM}/{{model}}/rollout/resume",
        name="resume_rollout",
        tag="Platform",
        summary="Let a paused rollout go on",
        body="OnlyMessage",
        body_required=False,
        answers={200: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, ModelNotFound, Conflict),
    ),
    Operation(
        method="POST",
        path=f"{_PLATFORM}/{{model}}/promote",
        name="promote",
        tag="Platform",
        summary="Give a revision all traffic",
        description="That of the rollout where none is named. 202 where it gets it as soon as it is ready.",
        body="RevisionPlan",
        body_required=False,
        answers={200: "Model", 202: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, ModelNotFound, Conflict),
    ),
    Operation(
        method="POST",
        path=f"{_PLATFORM}/{{model}}/rollback",
        name="roll_back",
        tag="Platform",
        summary="Take a rollout back, or return to an earlier revision",
        description="Without a rollout or a name, to the one that had all traffic before. 202 where it gets it as "
        "soon as it is ready.",
        body="RevisionPlan",
        body_required=False,
        answers={200: "Model", 202: "Model"},
        parameters=_CHANGE,
        faults=(*_BODY, ModelNotFound, Conflict),
    ),
    Operation(
        method="GET",
        path=f"{_PLATFORM}/{{model}}/revisions",
        name="list_revisions",
        tag="Platform",
        summary="The history of a model",
        answers={200: "Revisions"},
        faults=(ModelNotFound,),
    ),
    Operation(
        method="GET",
        path="/platform/v1/pools",
        name="list_pools",
        tag="Platform",
        summary="Where shared models live",
        answers={200: "Pools"},
    ),
    *(
        Operation(
            method="GET",
            path=path,
            name=name,
            tag="Platform",
            summary=summary,
            answers={200: "Events"},
            answer_types=(JSON, EVENT_STREAM),
            parameters=("After", "Limit", "Watch", "LastEventId"),
            faults=(InvalidRequest,),
        )
        for name, path, summary in (
            ("list_events", "/platform/v1/events", "What happened"),
            ("list_events_of_model", f"{_PLATFORM}/{{model}}/events", "What happened to a model, which may be gone"),
        )
    ),
    Operation(
        method="POST",
        path="/v2/repository/index",
        name="repository_index",
        tag=_REPOSITORY,
        summary="Every version of every model, and its state",
        body="IndexRequest",
        body_required=False,
        answers={200: "Index"},
        faults=_BODY,
    ),
    Operation(
        method="POST",
        path="/v2/repository/models/{model}/load",
        name="repository_load",
        tag=_REPOSITORY,
        summary="Load a model, and wait until it answers",
        description="The parameters `config` and `file:…` are 501: a model is loaded from where it was registered.",
        body="RepositoryRequest",
        body_required=False,
        parameters=(_DEADLINE,),
        faults=(*_FIND, *_BODY, ModelLoadError, Unsupported, DeadlineExceeded, Conflict),
    ),
    Operation(
        method="POST",
        path="/v2/repository/models/{model}/unload",
        name="repository_unload",
        tag=_REPOSITORY,
        summary="Unload a model, and wait until it takes no more requests",
        body="RepositoryRequest",
        body_required=False,
        parameters=(_DEADLINE,),
        faults=(*_FIND, *_BODY, DeadlineExceeded, Conflict),
    ),
    # extensions begin
    Operation(
        method="POST",
        path=f"{_MODEL_V2}*/generate",
        name="generate",
        tag=_OIP,
        summary="Ask a model, one flat object in and one out",
        description="Members that name an input are tensors, `id` is the id, all others are parameters of the model.",
        variants=V2_VARIANTS,
        body="GenerateRequest",
        answers={200: "GenerateResponse"},
        parameters=(_DEADLINE,),
        faults=_INFER,
    ),
    Operation(
        method="POST",
        path=f"{_MODEL_V2}*/generate_stream",
        name="generate_stream",
        tag=_OIP,
        summary="The same, each answer as a server-sent event when it comes",
        description="What goes wrong after the first answer is the last event: an object with `error`.",
        variants=V2_VARIANTS,
        body="GenerateRequest",
        answer_types=(EVENT_STREAM,),
        parameters=(_DEADLINE,),
        faults=_INFER,
    ),
    Operation(
        method="GET",
        path=f"{_MODEL_V2}*/config",
        name="model_config",
        tag=_OIP,
        summary="How a model is set up, in Triton's shape",
        variants=V2_VARIANTS,
        answers={200: "ModelConfig"},
        faults=_FIND,
    ),
    Operation(
        method="GET",
        path=f"{_MODEL_V2}*/stats",
        name="model_statistics",
        tag=_OIP,
        summary="What a model has answered and how long it took, in Triton's shape",
        variants=V2_VARIANTS,
        answers={200: "Statistics"},
        faults=(*_FIND, DeadlineExceeded),
    ),
    Operation(
        method="GET",
        path="/v2/models/stats",
        name="statistics",
        tag=_OIP,
        summary="The same of all models that are ready",
        answers={200: "Statistics"},
        faults=(DeadlineExceeded,),
    ),
    *(
        Operation(
            method=method,
            path=path,
            name=f"{method.lower()}{path.replace('{', '').replace('}', '').replace('/', '_')}",
            tag=NOT_THERE,
            summary=f"Triton's {what}: always 501",
            answers={},
            faults=(Unsupported,),
        )
        for what, path, methods in _UNSUPPORTED
        for method in methods
    ),
    # extensions end
    Operation(
        method="GET",
        path="/openapi.json",
        name="document",
        tag="Documentation",
        summary="This document",
        answers={200: "Document"},
    ),
    Operation(
        method="GET",
        path="/docs",
        name="documentation",
        tag="Documentation",
        summary="This document as a page to read and try",
        answer_types=(HTML,),
    ),
    Operation(
        method="GET",
        path="/docs/{file}",
        name="documentation_file",
        tag="Documentation",
        summary="A script, style or picture of the pages",
        answer_types=("text/javascript", "text/css", "image/png"),
        faults=(RouteNotFound,),
    ),
    Operation(
        method="GET",
        path=f"{_MODEL_V2}*/openapi.json",
        name="model_document",
        tag="Documentation",
        summary="The document of one model, with a request that it answers",
        variants=V2_VARIANTS,
        answers={200: "Document"},
        faults=_FIND,
    ),
    Operation(
        method="GET",
        path=f"{_MODEL_V2}*/docs",
        name="model_documentation",
        tag="Documentation",
        summary="The document of one model as a page to read and try",
        variants=V2_VARIANTS,
        answer_types=(HTML,),
        faults=_FIND,
    ),
    Operation(
        method="GET",
        path="/",
        name="alive",
        tag="Health",
        summary="Whether the process runs",
        answers={200: "Alive"},
    ),
)
