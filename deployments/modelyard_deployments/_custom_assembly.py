# SPDX-License-Identifier: Apache-2.0
"""Makes the user's class a model: finds its signature, and puts what stands around ``predict`` in its place."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from modelyard.errors import ModelLoadError, ModelNotReady
from modelyard.model import Model
from modelyard.openai import ROUTES, OpenAIModel
from modelyard.own import Model as OwnModel
from modelyard.peers import PeerCalls, get_peers
from modelyard.signature import Signature
from modelyard.tensor import Parameters, Tensors
from modelyard_deployments._custom_hints import Hints, read_hints
from modelyard_deployments._custom_hooks import LoopModel, LoopSpeakingModel, PlainModel, PlainSpeakingModel, Steps
from modelyard_deployments._custom_typed import TypedCall

_EXPLANATION: Final = "explanation"
_FORWARDED_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Made:
    """A model of the user's class, and what was found out about it.

    Attributes:
        model: The model; not loaded yet.
        predict: What its hints say; None where it has a signature of its own.
        explain: The same of ``explain``.
        forwards_to: Another model that predicts.
        followed: The signature of that model, where it is this one's as well.
    """

    model: Model
    predict: Hints | None = None
    explain: Hints | None = None
    forwards_to: str | None = None
    followed: Followed | None = None


class Followed:
    """The signature of another model, as it is now.

    Args:
        model: Its name.
        wait_s: How long to wait for it now.

    Raises:
        ModelLoadError: It is not ready in that time.
    """

    def __init__(self, model: str, wait_s: float) -> None:
        self._model = model
        peers = get_peers()
        try:
            self._last = peers.run(peers.until_ready(model, "", wait_s))
        except ModelNotReady as exc:
            raise ModelLoadError(f"option model: waited {wait_s:g} s: {exc}") from exc

    def find(self) -> Signature:
        """The last one known; what the platform's queues depend on stays as it was."""
        newest = get_peers().find_signature(self._model)
        if newest is not None and (newest.batch_axis, newest.decoupled) == (
            self._last.batch_axis,
            self._last.decoupled,
        ):
            self._last = newest
        return self._last


def make_model(found: type[Model], where: str, forwards_to: str | None, wait_s: float) -> Made:
    """Makes the user's class, with a signature where it has none.

    Args:
        found: The class.
        where: Its name in messages.
        forwards_to: The option ``model``.
        wait_s: The option ``wait_s``.

    Raises:
        ModelLoadError: It has no ``predict`` or one too many, or its hints say nothing.
    """
    own = _defines(found, "signature")
    if forwards_to is None and not _defines(found, "predict") and not (own and _defines(found, "stream")):
        raise ModelLoadError(f"{where}: predict is missing; or the option model names another model that predicts")
    if forwards_to is not None and _defines(found, "predict"):
        raise ModelLoadError(f"{where}: it has a predict, and the option model names another model: leave one out")
    if forwards_to is not None:
        followed = None if own else Followed(forwards_to, wait_s)
        added: dict[str, Any] = {"predict": _never}
        if followed is not None:
            added["signature"] = property(lambda _: followed.find())
        return Made(_extend(found, added)(), forwards_to=forwards_to, followed=followed)
    if own:
        return Made(found() if _defines(found, "predict") else _extend(found, {"predict": _never})())
    hints = read_hints(found.predict, f"{where} predict")
    explain = _read_explain(found, hints, where)
    return Made(_extend(found, {"signature": _to_signature(hints, explain)})(), hints, explain)


def _read_explain(found: type[Model], hints: Hints, where: str) -> Hints | None:
    method = getattr(found, "explain", None)
    if method is None:
        return None
    explain = read_hints(method, f"{where} explain", _EXPLANATION)
    known = {one.name: one.kind for one in (*hints.inputs, *hints.settings)}
    for one in (*explain.inputs, *explain.settings):
        if known.get(one.name) != one.kind:
            raise ModelLoadError(f'{where} explain, argument "{one.name}": expected one that predict has as well')
    return explain


def _to_signature(hints: Hints, explain: Hints | None) -> Signature:
    explanations = explain.output_specs() if explain is not None else ()
    return Signature(
        inputs=hints.input_specs(),
        outputs=hints.output_specs(),
        on_request=explanations,
        batch_axis=not hints.is_stream,
        decoupled=hints.is_stream,
        explanations=tuple(spec.name for spec in explanations),
        example=hints.example(),
    )


def assemble(made: Made, where: str) -> Model:
    """The model with its hooks.

    Raises:
        ModelLoadError: ``explain`` has no outputs, a stream is plain and what stands around it is not, or nothing
            gives its answers.
    """
    model, hooks = made.model, [getattr(made.model, name, None) for name in ("preprocess", "postprocess", "explain")]
    preprocess, postprocess, explain = hooks
    predict, stream = _find_calls(made, where, has_postprocess=postprocess is not None)
    if explain is not None and not model.signature.explanations:
        raise ModelLoadError(
            f"{where}: it has an explain, so its signature names what that computes, in on_request and in explanations"
        )
    if explain is not None and made.explain is not None:
        explain = TypedCall(explain, made.explain).hook
    steps = Steps(predict, stream, preprocess, postprocess, explain)
    is_async = steps.streams_async if model.signature.decoupled else steps.is_async
    if model.signature.decoupled and steps.is_async and not is_async:
        raise ModelLoadError(
            f"{where}: the stream is a plain generator, so preprocess and postprocess have to be plain"
        )
    find = made.followed.find if made.followed is not None else lambda: model.signature
    kind = LoopModel if is_async else PlainModel
    if isinstance(model, OpenAIModel):
        _check_speaks(model, where)
        kind = LoopSpeakingModel if is_async else PlainSpeakingModel
    return kind(
        model, steps, find, _concurrency(made), may_change=made.followed is not None or model.signature_may_change
    )


def _check_speaks(model: OpenAIModel, where: str) -> None:
    """Refuses what could answer no call of the OpenAI protocol.

    Raises:
        ModelLoadError: Its ``answer`` is no async generator, or it names a route that there is not.
    """
    if not inspect.isasyncgenfunction(model.answer):
        raise ModelLoadError(f"{where} answer: expected an async generator, `async def answer` that yields parts")
    routes = model.openai_routes
    if not isinstance(routes, tuple) or not routes or set(routes) - set(ROUTES):
        raise ModelLoadError(
            f"{where} openai_routes: expected a tuple with some of {', '.join(ROUTES)}, got {routes!r}"
        )


def _find_calls(made: Made, where: str, *, has_postprocess: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What stands for ``predict`` and ``stream``.

    Raises:
        ModelLoadError: Its own signature says that it streams and its ``predict`` does not, or the reverse.
    """
    if made.forwards_to is not None:
        forward = _Forward(made.model, made.forwards_to, names_outputs=not has_postprocess)
        return forward.predict, forward.stream
    if made.predict is not None:
        call = TypedCall(made.model.predict, made.predict)
        return call.predict, call.stream
    model, streams = made.model, made.model.signature.decoupled
    yields = inspect.isgeneratorfunction(model.predict) or inspect.isasyncgenfunction(model.predict)
    if yields and not streams:
        raise ModelLoadError(f"{where}: predict yields, so its signature has decoupled=True and batch_axis=False")
    if _defines(type(model), "stream") or not streams:
        return model.predict, model.stream
    if not yields:
        raise ModelLoadError(f"{where}: its signature is decoupled, so predict has to yield each answer")
    return model.predict, model.predict


def _concurrency(made: Made) -> int:
    if made.forwards_to is not None and not _defines(type(made.model), "concurrency"):
        return _FORWARDED_AT_ONCE
    return made.model.concurrency


class _Forward:
    """Has another model predict.

    Args:
        caller: The model that asks.
        model: The one that is asked.
        names_outputs: It is asked for what the client asks for; else for its default outputs.
    """

    def __init__(self, caller: Model, model: str, *, names_outputs: bool) -> None:
        self._caller = caller
        self._model = model
        self._names_outputs = names_outputs

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """As ``Model.predict``."""
        names = outputs if self._names_outputs else ()
        return await self._caller.call_async(self._model, inputs, names, parameters=parameters)

    async def stream(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> AsyncIterator[Tensors]:
        """As ``Model.stream``."""
        names = outputs if self._names_outputs else ()
        answers = self._caller.call_stream_async(self._model, inputs, names, parameters=parameters)
        try:
            async for answer in answers:
                yield answer
        finally:
            await answers.aclose()


def _defines(found: type[Model], name: str) -> bool:
    """The class says so itself, it has not just inherited it from ``modelyard.Model``."""
    owner = next(one for one in found.__mro__ if name in vars(one))
    return owner not in (Model, OwnModel, PeerCalls)


def _extend(found: type[Model], added: dict[str, Any]) -> type[Model]:
    """The user's class with what it leaves out."""
    extended: type[Model] = type(found.__name__, (found,), {**added, "__module__": found.__module__})
    return extended


def _never(*_: Any) -> Any:
    raise NotImplementedError  # in place of an abstract method that is never called
