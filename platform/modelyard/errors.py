# SPDX-License-Identifier: Apache-2.0
"""The one error tree; every edge derives its status from it.

::

    ModelyardError
    ├── InvalidRequest          400  INVALID_ARGUMENT     the body is not the protocol's shape
    │   ├── InvalidTensor       400  INVALID_ARGUMENT     one tensor is not what the signature says
    │   └── SignatureNotFound   400  FAILED_PRECONDITION  the model has no signature of that name
    ├── InvalidConfig           400  INVALID_ARGUMENT     a configuration value is refused
    ├── Unauthenticated         401  UNAUTHENTICATED
    ├── Forbidden               403  PERMISSION_DENIED
    ├── ModelNotFound           404  NOT_FOUND            unknown model, version or label
    ├── RouteNotFound           404  UNIMPLEMENTED        no such path or method
    ├── MethodNotAllowed        405  UNIMPLEMENTED
    ├── Conflict                409  ABORTED              a concurrent or contradicting change
    ├── TooLarge                413  RESOURCE_EXHAUSTED   body or element over its limit
    ├── UnsupportedMediaType    415  UNIMPLEMENTED
    ├── Overloaded              429  RESOURCE_EXHAUSTED   queue full; comes with Retry-After
    ├── ModelFailed             500  INTERNAL             the model raised
    ├── InternalError           500  INTERNAL             a fault of the platform
    ├── Unsupported             501  UNIMPLEMENTED        the model or framework cannot do this
    ├── ModelNotReady           503  UNAVAILABLE          loading, failed or gone; comes with Retry-After
    ├── ModelLoadError          503  UNAVAILABLE          the artifact cannot be loaded
    ├── Unavailable             503  UNAVAILABLE          a part of the platform is away; comes with Retry-After
    └── DeadlineExceeded        504  DEADLINE_EXCEEDED

Constructor arguments go unchanged to ``super().__init__`` and the sentence is built in ``__str__``: only so does an
exception pickle, and therefore cross a Ray process boundary, intact.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class GrpcStatus(Enum):
    """gRPC status codes by number, so that the vocabulary does not import grpc.

    Source: grpc ``doc/statuscodes.md``.
    """

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class ModelyardError(Exception):
    """Base of every error that reaches a client."""

    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[GrpcStatus] = GrpcStatus.INTERNAL
    code: ClassVar[str] = "internal"
    retry_after_s: ClassVar[int | None] = None


class InvalidRequest(ModelyardError):
    """The request is not what the protocol or the model asks for.

    Args:
        reason: What is wrong and where, what was expected and what was got.
    """

    http_status = 400
    grpc_status = GrpcStatus.INVALID_ARGUMENT
    code = "invalid-request"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class InvalidTensor(InvalidRequest):
    """One tensor does not fit: ``input "x": expected FP32 [-1,4], got FP64 [2,3]``.

    Args:
        where: Which tensor, for example ``input "x"``.
        expected: What it had to be.
        got: What it was.
    """

    code = "invalid-tensor"

    def __init__(self, where: str, expected: str, got: str) -> None:
        ModelyardError.__init__(self, where, expected, got)
        self.where = where
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.got}"


class SignatureNotFound(InvalidRequest):
    """The model has no signature of that name.

    Args:
        signature: The name as the client wrote it.
        model: Name of the model.
        known: The names there are.

    Source: TensorFlow Serving ``predict_util.cc`` and ``http_rest_api_handler.cc``, for the statuses and the sentence.
    """

    grpc_status = GrpcStatus.FAILED_PRECONDITION
    code = "signature-not-found"

    def __init__(self, signature: str, model: str, known: str) -> None:
        ModelyardError.__init__(self, signature, model, known)
        self.signature = signature
        self.model = model
        self.known = known

    def __str__(self) -> str:
        return (
            f'Serving signature name: "{self.signature}" not found in signature def of model "{self.model}": '
            f"expected {self.known}"
        )


class InvalidConfig(ModelyardError):
    """A configuration or registration is refused before anything is deployed.

    Args:
        problems: One sentence each, beginning with the key's path (``models[2].autoscaling.min_replicas: …``).
    """

    http_status = 400
    grpc_status = GrpcStatus.INVALID_ARGUMENT
    code = "invalid-config"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(self.problems)


class _Reasoned(ModelyardError):
    """Shared shape of the errors that carry one sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Unauthenticated(_Reasoned):
    """No or bad credentials."""

    http_status = 401
    grpc_status = GrpcStatus.UNAUTHENTICATED
    code = "unauthenticated"


class Forbidden(_Reasoned):
    """Known caller, not allowed."""

    http_status = 403
    grpc_status = GrpcStatus.PERMISSION_DENIED
    code = "forbidden"


class ModelNotFound(ModelyardError):
    """No such model, or no such version or label of it.

    Args:
        model: The name as the client wrote it.
        version: The version or label as the client wrote it; empty when it named none.
    """

    http_status = 404
    grpc_status = GrpcStatus.NOT_FOUND
    code = "model-not-found"

    def __init__(self, model: str, version: str = "") -> None:
        super().__init__(model, version)
        self.model = model
        self.version = version

    def __str__(self) -> str:
        if self.version:
            return f'model "{self.model}" has no version "{self.version}"'
        return f'model "{self.model}" is not found'


class RouteNotFound(_Reasoned):
    """No such path."""

    http_status = 404
    grpc_status = GrpcStatus.UNIMPLEMENTED
    code = "route-not-found"


class MethodNotAllowed(_Reasoned):
    """Known path, wrong HTTP method."""

    http_status = 405
    grpc_status = GrpcStatus.UNIMPLEMENTED
    code = "method-not-allowed"


class Conflict(_Reasoned):
    """The change contradicts the catalog's state."""

    http_status = 409
    grpc_status = GrpcStatus.ABORTED
    code = "conflict"


class TooLarge(ModelyardError):
    """A size is over its limit.

    Args:
        what: What is too large, for example ``request body``.
        limit: The limit, in ``unit``.
        got: The size found, in ``unit``; None where it was not read to the end.
        unit: ``bytes``, ``characters``, ``rows`` or ``elements``.
    """

    http_status = 413
    grpc_status = GrpcStatus.RESOURCE_EXHAUSTED
    code = "too-large"

    def __init__(self, what: str, limit: int, got: int | None = None, unit: str = "bytes") -> None:
        super().__init__(what, limit, got, unit)
        self.what = what
        self.limit = limit
        self.got = got
        self.unit = unit

    def __str__(self) -> str:
        got = "more" if self.got is None else f"{self.got}"
        return f"{self.what}: expected at most {self.limit} {self.unit}, got {got}"


class UnsupportedMediaType(_Reasoned):
    """The body's content type or encoding is not one we read."""

    http_status = 415
    grpc_status = GrpcStatus.UNIMPLEMENTED
    code = "unsupported-media-type"


class Overloaded(_Reasoned):
    """A queue is full or a quota is used up; try again after ``retry_after_s``."""

    http_status = 429
    grpc_status = GrpcStatus.RESOURCE_EXHAUSTED
    code = "overloaded"
    retry_after_s = 1


class ModelFailed(ModelyardError):
    """The model's own code raised while predicting.

    Args:
        model: Name of the model.
        reason: Type and message of what it raised; never a traceback.
    """

    http_status = 500
    grpc_status = GrpcStatus.INTERNAL
    code = "model-failed"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.model = model
        self.reason = reason

    def __str__(self) -> str:
        return f'model "{self.model}" failed: {self.reason}'


class InternalError(_Reasoned):
    """A fault of the platform itself; the log has the details under the request's id."""

    code = "internal"


class Unavailable(_Reasoned):
    """A part of the platform cannot be reached now, its controller or the catalog's database; it may be soon."""

    http_status = 503
    grpc_status = GrpcStatus.UNAVAILABLE
    code = "unavailable"
    retry_after_s = 5


class Unsupported(_Reasoned):
    """The model, framework or server cannot do this."""

    http_status = 501
    grpc_status = GrpcStatus.UNIMPLEMENTED
    code = "unsupported"


class ModelNotReady(ModelyardError):
    """A known model that cannot answer now.

    Args:
        model: Name of the model.
        reason: Why: loading, failed to load and how, being removed.
    """

    http_status = 503
    grpc_status = GrpcStatus.UNAVAILABLE
    code = "model-not-ready"
    retry_after_s = 5

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.model = model
        self.reason = reason

    def __str__(self) -> str:
        return f'model "{self.model}" is not ready: {self.reason}'


class DeadlineExceeded(ModelyardError):
    """The request's time ran out.

    Args:
        timeout_s: The time it had, in seconds.
        meanwhile: What goes on nevertheless; empty where nothing does.
    """

    http_status = 504
    grpc_status = GrpcStatus.DEADLINE_EXCEEDED
    code = "deadline-exceeded"

    def __init__(self, timeout_s: float, meanwhile: str = "") -> None:
        super().__init__(timeout_s, meanwhile)
        self.timeout_s = timeout_s
        self.meanwhile = meanwhile

    def __str__(self) -> str:
        return f"deadline exceeded: no answer within {self.timeout_s:g} s" + (self.meanwhile and f"; {self.meanwhile}")


class ModelLoadError(ModelyardError):
    """A model cannot be loaded; the controller shows it as ``failed`` with this reason.

    Args:
        reason: What is wrong with the artifact or the environment, and what to do.
    """

    http_status = 503
    grpc_status = GrpcStatus.UNAVAILABLE
    code = "model-load-failed"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason
