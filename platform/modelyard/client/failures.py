# SPDX-License-Identifier: Apache-2.0
"""From a reply's status, code and sentence back to the exception the platform raised.

The admin API says the code; the inference protocols have no room for it, so there the status decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeGuard

from modelyard.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    GrpcStatus,
    InternalError,
    InvalidConfig,
    InvalidRequest,
    InvalidTensor,
    MethodNotAllowed,
    ModelFailed,
    ModelLoadError,
    ModelNotFound,
    ModelNotReady,
    ModelyardError,
    Overloaded,
    RouteNotFound,
    SignatureNotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
    UnsupportedMediaType,
)

_Rebuild: TypeAlias = Callable[[str], ModelyardError | None]
_MAX_SHOWN: Final = 200


class ApiError(ModelyardError):
    """An answer that is not one of the platform's, for example a proxy's error page.

    Args:
        status: HTTP status of the answer.
        message: What it said, shortened.
    """

    http_status = 502
    grpc_status = GrpcStatus.INTERNAL
    code = "unexpected-answer"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"unexpected answer with status {self.status}: {self.message or 'empty'}"


class PlatformUnreachable(ModelyardError):
    """Nothing answers at the platform's address.

    Args:
        url: The address.
        reason: What went wrong.
    """

    http_status = 503
    grpc_status = GrpcStatus.UNAVAILABLE
    code = "unreachable"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"no platform answers at {self.url}: {self.reason}"


class RolledBack(ModelyardError):
    """A rollout that was waited for has been taken back: a gate did not hold, or somebody wanted it.

    Args:
        model: Name of the model.
        revision: Number of the revision that has lost its traffic again.
        reason: Why.
    """

    http_status = 409
    grpc_status = GrpcStatus.ABORTED
    code = "rolled-back"

    def __init__(self, model: str, revision: int, reason: str) -> None:
        super().__init__(model, revision, reason)
        self.model = model
        self.revision = revision
        self.reason = reason

    def __str__(self) -> str:
        return f'model "{self.model}": revision {self.revision} was rolled back: {self.reason}'


def to_error(status: int, document: object) -> ModelyardError:
    """The exception behind an error reply.

    Args:
        status: Its HTTP status.
        document: Its JSON body, or its text where it is not JSON.
    """
    if not is_own(document):
        text = document.strip() if isinstance(document, str) else "a body that is not the platform's"
        return ApiError(status, text[:_MAX_SHOWN])
    message: str = document["error"]
    if document.get("code") == InvalidConfig.code:
        return InvalidConfig(tuple(map(str, document.get("problems") or (message,))))
    rebuild = _BY_CODE.get(str(document.get("code"))) or _BY_STATUS.get(status, ())
    for attempt in rebuild:
        error = attempt(message)
        if error is not None:
            return error
    return ApiError(status, message[:_MAX_SHOWN])


def is_own(document: object) -> TypeGuard[Mapping[str, Any]]:
    """The body of an error is the platform's own: it has its sentence."""
    return isinstance(document, Mapping) and isinstance(document.get("error"), str)


def _matching(pattern: str, build: Callable[..., ModelyardError]) -> _Rebuild:
    """Rebuilds an error whose sentence has its arguments in it."""
    compiled = re.compile(pattern, re.DOTALL)

    def rebuild(message: str) -> ModelyardError | None:
        found = compiled.fullmatch(message)
        return build(*found.groups()) if found else None

    return rebuild


def _too_large(what: str, limit: str, unit: str, got: str) -> TooLarge:
    return TooLarge(what, int(limit), None if got == "more" else int(got), unit)


_NOT_FOUND: Final = _matching('model "(.*?)" is not found', ModelNotFound)
_NO_VERSION: Final = _matching('model "(.*?)" has no version "(.*)"', ModelNotFound)
_NOT_READY: Final = _matching('model "(.*?)" is not ready: (.*)', ModelNotReady)
_FAILED: Final = _matching('model "(.*?)" failed: (.*)', ModelFailed)
_AWAY: Final = _matching("((?:the platform's controller does not answer|the catalog's database failed).*)", Unavailable)
_TENSOR: Final = _matching("(.*?): expected (.*), got (.*)", InvalidTensor)
_SIGNATURE: Final = _matching(
    'Serving signature name: "(.*?)" not found in signature def of model "(.*?)": expected (.*)', SignatureNotFound
)
_SIZE: Final = _matching(r"(.*): expected at most (\d+) (\w+), got (\d+|more)", _too_large)
_LATE: Final = _matching(
    r"deadline exceeded: no answer within ([\d.e+-]+) s(?:; (.*))?",
    lambda text, meanwhile: DeadlineExceeded(float(text), meanwhile or ""),
)

_BY_CODE: Final[Mapping[str, tuple[_Rebuild, ...]]] = {
    InvalidRequest.code: (InvalidRequest,),
    InvalidTensor.code: (_TENSOR, InvalidRequest),
    SignatureNotFound.code: (_SIGNATURE, InvalidRequest),
    Unauthenticated.code: (Unauthenticated,),
    Forbidden.code: (Forbidden,),
    ModelNotFound.code: (_NOT_FOUND, _NO_VERSION),
    RouteNotFound.code: (RouteNotFound,),
    MethodNotAllowed.code: (MethodNotAllowed,),
    Conflict.code: (Conflict,),
    TooLarge.code: (_SIZE,),
    UnsupportedMediaType.code: (UnsupportedMediaType,),
    Overloaded.code: (Overloaded,),
    ModelFailed.code: (_FAILED,),
    InternalError.code: (InternalError,),
    Unsupported.code: (Unsupported,),
    ModelNotReady.code: (_NOT_READY,),
    ModelLoadError.code: (ModelLoadError,),
    Unavailable.code: (Unavailable,),
    PlatformUnreachable.code: (Unavailable,),  # said by the HAProxy in front of it
    DeadlineExceeded.code: (_LATE,),
}

_BY_STATUS: Final[Mapping[int, tuple[_Rebuild, ...]]] = {
    400: (InvalidRequest,),
    401: (Unauthenticated,),
    403: (Forbidden,),
    404: (_NOT_FOUND, _NO_VERSION, RouteNotFound),
    405: (MethodNotAllowed,),
    409: (Conflict,),
    413: (_SIZE,),
    415: (UnsupportedMediaType,),
    429: (Overloaded,),
    500: (_FAILED, InternalError),
    501: (Unsupported,),
    503: (_NOT_READY, _AWAY, ModelLoadError),
    504: (_LATE,),
}


def check_reply(status: int, document: Any) -> Any:
    """The document of a successful reply.

    Raises:
        ModelyardError: What an error reply stands for.
    """
    if status >= 400:
        raise to_error(status, document)
    return document
