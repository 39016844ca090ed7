# SPDX-License-Identifier: Apache-2.0
"""``Platform`` and ``AsyncPlatform``: the same verbs, sync and async, over HTTP or from inside the cluster.

A relative ``uri`` is sent as it is and counts from the *platform's* working directory, wherever the client runs.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from modelyard.admin import AdminTransport, ModelState, ModelStatus
from modelyard.client.arrays import to_tensors
from modelyard.client.http import HttpTransport
from modelyard.client.loop import LoopThread
from modelyard.config import ModelSpec, check_framework, parse_model_spec
from modelyard.errors import InvalidConfig, ModelNotFound, ModelNotReady
from modelyard.inference import InferenceRequest, InferenceResponse, RequestedOutput
from modelyard.model import list_frameworks

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_ACTOR: Final = "python"
_POLL_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between two looks at a model; the last one repeats."""
_NOT_COMING: Final = (ModelState.FAILED, ModelState.REMOVING, ModelState.UNLOADING, ModelState.UNLOADED)


def open_transport(url: str | None = None, *, token: str | None = None, timeout_s: float = 30.0) -> AdminTransport:
    """The way to the platform.

    An address, given or in ``MODELYARD_URL``, wins. Without one, a process that is connected to a Ray cluster talks to
    the platform in it; any other to ``http://127.0.0.1:8000``.

    Args:
        url: Address of the platform.
        token: Bearer token; without one, ``MODELYARD_TOKEN``.
        timeout_s: How long one call may take.

    Raises:
        InvalidConfig: The URL is not an HTTP address.
    """
    address = url or os.environ.get("MODELYARD_URL")
    if not address and _is_in_cluster():
        transport: AdminTransport = importlib.import_module("modelyard.serve.admin").HandleTransport()
        return transport
    return HttpTransport(address or DEFAULT_URL, token=token or os.environ.get("MODELYARD_TOKEN"), timeout_s=timeout_s)


def _is_in_cluster() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def check_locally(spec: ModelSpec) -> None:
    """Refuses what this side can know to be wrong; a framework only the platform has is left to the platform.

    Raises:
        InvalidConfig: The framework is installed here and does not take the options.
    """
    problems = check_framework(spec) if spec.framework in list_frameworks() else ()
    if problems:
        raise InvalidConfig(problems)


class AsyncPlatform:
    """The platform, for ``async`` code. Use one from one event loop.

    Args:
        transport: How to reach it; :meth:`connect` chooses one.
    """

    def __init__(self, transport: AdminTransport) -> None:
        self._transport = transport

    @classmethod
    def connect(cls, url: str | None = None, *, token: str | None = None, timeout_s: float = 30.0) -> Self:
        """A client; nothing is sent yet. See :meth:`Platform.connect`."""
        return cls(open_transport(url, token=token, timeout_s=timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def register(
        self,
        name: str,
        *,
        framework: str,
        uri: str = "",
        options: Mapping[str, Any] | None = None,
        version_policy: Mapping[str, Any] | None = None,
        batching: Mapping[str, Any] | None = None,
        autoscaling: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        runtime: Mapping[str, Any] | None = None,
        description: str = "",
        message: str = "",
        wait: bool = False,
        timeout_s: float = 60.0,
    ) -> ModelStatus:
        """See :meth:`Platform.register`."""
        sections = {
            "options": options,
            "version_policy": version_policy,
            "batching": batching,
            "autoscaling": autoscaling,
            "resources": resources,
            "limits": limits,
            "runtime": runtime,
        }
        given = {key: dict(value) for key, value in sections.items() if value is not None}
        spec = parse_model_spec({"name": name, "framework": framework, "uri": uri, "description": description, **given})
        return await self.register_spec(spec, message=message, wait=wait, timeout_s=timeout_s)

    async def register_spec(
        self, spec: ModelSpec, *, message: str = "", wait: bool = False, timeout_s: float = 60.0
    ) -> ModelStatus:
        """See :meth:`Platform.register_spec`."""
        check_locally(spec)
        status = await self._transport.register(spec.to_json(), actor=_ACTOR, message=message)
        return await self.wait_ready(spec.name, timeout_s=timeout_s) if wait else status

    async def unregister(
        self, name: str, *, message: str = "", wait: bool = False, timeout_s: float = 60.0
    ) -> ModelStatus:
        """See :meth:`Platform.unregister`."""
        status = await self._transport.unregister(name, actor=_ACTOR, message=message)
        if wait:
            await self._wait_gone(name, timeout_s)
        return status

    async def load(self, name: str, *, message: str = "", wait: bool = False, timeout_s: float = 60.0) -> ModelStatus:
        """See :meth:`Platform.load`."""
        status = await self._transport.load(name, actor=_ACTOR, message=message)
        return await self.wait_ready(name, timeout_s=timeout_s) if wait else status

    async def unload(self, name: str, *, message: str = "", wait: bool = False, timeout_s: float = 60.0) -> ModelStatus:
        """See :meth:`Platform.unload`."""
        status = await self._transport.unload(name, actor=_ACTOR, message=message)
        return await self._wait_unloaded(status, timeout_s) if wait else status

    async def list(self) -> tuple[ModelStatus, ...]:
        """See :meth:`Platform.list`."""
        return await self._transport.list()

    async def status(self, name: str) -> ModelStatus:
        """See :meth:`Platform.status`."""
        return await self._transport.status(name)

    async def wait_ready(self, name: str, timeout_s: float = 60.0) -> ModelStatus:
        """See :meth:`Platform.wait_ready`."""
        waits = _Waits(timeout_s)
        while True:
            status = await self._transport.status(name)
            if status.state is ModelState.READY:
                return status
            if status.state in _NOT_COMING:
                raise ModelNotReady(name, _reason(status))
            if not await waits.pause():
                raise ModelNotReady(name, f"{_reason(status)} (waited {timeout_s:g} s)")

    async def predict(
        self,
        name: str,
        inputs: Any,
        *,
        outputs: Sequence[str] = (),
        version: str | int | None = None,
        parameters: Mapping[str, bool | int | float | str] | None = None,
        timeout_s: float | None = None,
    ) -> InferenceResponse:
        """See :meth:`Platform.predict`."""
        request = InferenceRequest(
            to_tensors(inputs), outputs=tuple(map(RequestedOutput, outputs)), parameters=dict(parameters or {})
        )
        return await self.infer(name, request, version=version, timeout_s=timeout_s)

    async def infer(
        self, name: str, request: InferenceRequest, *, version: str | int | None = None, timeout_s: float | None = None
    ) -> InferenceResponse:
        """See :meth:`Platform.infer`."""
        revision = "" if version is None else str(version)
        return await self._transport.infer(name, revision, request, timeout_s=timeout_s)

    async def _wait_unloaded(self, status: ModelStatus, timeout_s: float) -> ModelStatus:
        """The first status in which nothing of the model runs, or in which it is wanted again."""
        waits = _Waits(timeout_s)
        while status.state is ModelState.UNLOADING:
            if not await waits.pause():
                raise ModelNotReady(status.name, f"still being unloaded (waited {timeout_s:g} s)")
            status = await self._transport.status(status.name)
        return status

    async def _wait_gone(self, name: str, timeout_s: float) -> None:
        waits = _Waits(timeout_s)
        while True:
            try:
                status = await self._transport.status(name)
            except ModelNotFound:
                return
            if status.state is not ModelState.REMOVING:  # registered again meanwhile
                return
            if not await waits.pause():
                raise ModelNotReady(name, f"still being removed (waited {timeout_s:g} s)")


class Platform:
    """The platform, for scripts and notebooks; :attr:`aio` is its async twin.

    Args:
        open_transport: Makes a way to reach it, one for each event loop; :meth:`connect` chooses one.
    """

    def __init__(self, open_transport: Callable[[], AdminTransport]) -> None:
        self._open_transport = open_transport
        self._platform = AsyncPlatform(open_transport())
        self._loop = LoopThread()
        self._aio: AsyncPlatform | None = None

    @classmethod
    def connect(cls, url: str | None = None, *, token: str | None = None, timeout_s: float = 30.0) -> Self:
        """A client; nothing is sent yet.

        An address, given or in ``MODELYARD_URL``, wins. Without one, a process that is connected to a Ray cluster
        talks to the platform in it; any other to ``http://127.0.0.1:8000``.

        Args:
            url: Address of the platform.
            token: Bearer token; without one, ``MODELYARD_TOKEN``.
            timeout_s: How long one call may take.

        Raises:
            InvalidConfig: The URL is not an HTTP address.
        """
        return cls(partial(open_transport, url, token=token, timeout_s=timeout_s))

    @property
    def aio(self) -> AsyncPlatform:
        """The same verbs as coroutines, with connections of their own; close them in the loop that used them."""
        if self._aio is None:
            self._aio = AsyncPlatform(self._open_transport())
        return self._aio

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections and ends the thread behind this object."""
        self._loop.run(self._platform.close())
        self._loop.close()

    def register(
        self,
        name: str,
        *,
        framework: str,
        uri: str = "",
        options: Mapping[str, Any] | None = None,
        version_policy: Mapping[str, Any] | None = None,
        batching: Mapping[str, Any] | None = None,
        autoscaling: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        runtime: Mapping[str, Any] | None = None,
        description: str = "",
        message: str = "",
        wait: bool = False,
        timeout_s: float = 60.0,
    ) -> ModelStatus:
        """Creates a model, or changes the registered one of that name to exactly this.

        What can be checked here is checked before anything is sent. Returns when the platform has written it down;
        the model may still be loading.

        Args:
            name: Name of the model.
            framework: What loads it, for example ``sklearn``.
            uri: Where its artifact is, as the platform sees it; a relative path counts from its working directory.
            options: Options of the framework.
            version_policy: Which numeric folders of the artifact are served; keys as in the configuration file.
            batching: Keys as under ``batching`` in the configuration file; so for the next four.
            autoscaling: How many replicas.
            resources: What each replica reserves.
            limits: When it refuses requests.
            runtime: What its processes run in.
            description: What the model is for.
            message: Why, for the history.
            wait: Wait until it is ready.
            timeout_s: How long to wait.

        Raises:
            InvalidConfig: Something in it is wrong; ``problems`` has a sentence for each key.
            Conflict: The name belongs to a model of the configuration file.
            ModelNotReady: It was waited for, and failed or did not become ready in time.
        """
        return self._loop.run(
            self._platform.register(
                name,
                framework=framework,
                uri=uri,
                options=options,
                version_policy=version_policy,
                batching=batching,
                autoscaling=autoscaling,
                resources=resources,
                limits=limits,
                runtime=runtime,
                description=description,
                message=message,
                wait=wait,
                timeout_s=timeout_s,
            )
        )

    def register_spec(
        self, spec: ModelSpec, *, message: str = "", wait: bool = False, timeout_s: float = 60.0
    ) -> ModelStatus:
        """Like :meth:`register`, with the whole description in one object."""
        return self._loop.run(self._platform.register_spec(spec, message=message, wait=wait, timeout_s=timeout_s))

    def unregister(self, name: str, *, message: str = "", wait: bool = False, timeout_s: float = 60.0) -> ModelStatus:
        """Takes a registered model away; it answers what it has accepted first.

        Args:
            name: The model.
            message: Why, for the history.
            wait: Wait until it is gone.
            timeout_s: How long to wait.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It belongs to the configuration file.
            ModelNotReady: It was waited for and is still being removed.
        """
        return self._loop.run(self._platform.unregister(name, message=message, wait=wait, timeout_s=timeout_s))

    def load(self, name: str, *, message: str = "", wait: bool = False, timeout_s: float = 60.0) -> ModelStatus:
        """Runs a model again that was unloaded or has failed, and reads its artifact again.

        Changed contents make the next revision; a model that runs with these very contents is left as it is. It works
        for models of the configuration file too.

        Args:
            name: The model.
            message: Why, for the history.
            wait: Wait until it is ready.
            timeout_s: How long to wait.

        Raises:
            ModelNotFound: There is none of that name.
            ModelLoadError: Its artifact is not there any more; what ran goes on running.
            Conflict: It is being removed.
            ModelNotReady: It was waited for, and failed or did not become ready in time.
        """
        return self._loop.run(self._platform.load(name, message=message, wait=wait, timeout_s=timeout_s))

    def unload(self, name: str, *, message: str = "", wait: bool = False, timeout_s: float = 60.0) -> ModelStatus:
        """Stops all of a model that runs; it answers what it has accepted first.

        The platform keeps the model, over restarts too, until it is loaded (:meth:`load`) or registered again. It
        works for models of the configuration file too.

        Args:
            name: The model.
            message: Why, for the history.
            wait: Wait until nothing of it runs.
            timeout_s: How long to wait.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It is being removed.
            ModelNotReady: It was waited for and is still being unloaded.
        """
        return self._loop.run(self._platform.unload(name, message=message, wait=wait, timeout_s=timeout_s))

    def list(self) -> tuple[ModelStatus, ...]:
        """All models, by name."""
        return self._loop.run(self._platform.list())

    def status(self, name: str) -> ModelStatus:
        """One model.

        Raises:
            ModelNotFound: There is none of that name.
        """
        return self._loop.run(self._platform.status(name))

    def wait_ready(self, name: str, timeout_s: float = 60.0) -> ModelStatus:
        """Waits until the model answers requests.

        Raises:
            ModelNotFound: There is none of that name.
            ModelNotReady: With the reason: as soon as it has failed, is unloaded or removed, or when the time is over.
        """
        return self._loop.run(self._platform.wait_ready(name, timeout_s))

    def predict(
        self,
        name: str,
        inputs: Any,
        *,
        outputs: Sequence[str] = (),
        version: str | int | None = None,
        parameters: Mapping[str, bool | int | float | str] | None = None,
        timeout_s: float | None = None,
    ) -> InferenceResponse:
        """Asks a model.

        Args:
            name: The model.
            inputs: Rows as an array or nested list; a DataFrame; records; or arrays by input name.
            outputs: What to answer, for example ``["predict_proba"]``; empty for the model's default.
            version: Revision number or label; None for wherever the model's traffic goes.
            parameters: Sent along with the request.
            timeout_s: Deadline; None for the platform's own.

        Returns:
            The answer; ``.outputs`` has the arrays by name, read-only.

        Raises:
            InvalidRequest: The inputs do not fit the model.
            ModelNotFound: There is no such model or version.
            ModelNotReady: It cannot answer now.
            DeadlineExceeded: The time is over.
        """
        return self._loop.run(
            self._platform.predict(
                name, inputs, outputs=outputs, version=version, parameters=parameters, timeout_s=timeout_s
            )
        )

    def infer(
        self, name: str, request: InferenceRequest, *, version: str | int | None = None, timeout_s: float | None = None
    ) -> InferenceResponse:
        """Like :meth:`predict`, with the request as the platform's own object."""
        return self._loop.run(self._platform.infer(name, request, version=version, timeout_s=timeout_s))


class _Waits:
    """Growing pauses up to a time limit."""

    def __init__(self, timeout_s: float) -> None:
        self._give_up_at = time.monotonic() + timeout_s
        self._count = 0

    async def pause(self) -> bool:
        """False when the time is over."""
        left_s = self._give_up_at - time.monotonic()
        if left_s <= 0:
            return False
        await asyncio.sleep(min(left_s, _POLL_S[min(self._count, len(_POLL_S) - 1)]))
        self._count += 1
        return True


def _reason(status: ModelStatus) -> str:
    return f"{status.state}: {status.reason}" if status.reason else str(status.state)
