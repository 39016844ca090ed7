# SPDX-License-Identifier: Apache-2.0
"""``AsyncPlatform``: every verb as a coroutine, over HTTP or from inside the cluster.

A relative ``uri`` is sent as it is and counts from the *platform's* working directory, wherever the client runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from types import EllipsisType, TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypedDict, Unpack, overload

from modelyard.admin import Action, AdminTransport, By, Event, ModelState, ModelStatus, Plan, Pool, Revision
from modelyard.client.actor import find_actor
from modelyard.client.arrays import to_tensors
from modelyard.client.http import HttpTransport
from modelyard.client.waiting import EventWatch, GoneWait, ReadyWait, RolloutWait, UnloadWait, Wait, made_revision
from modelyard.config import (
    ModelsFile,
    ModelSpec,
    RolloutPlan,
    TrafficPlan,
    check_framework,
    parse_model_spec,
    parse_section,
)
from modelyard.errors import Conflict, Forbidden, InvalidConfig, Unsupported
from modelyard.inference import InferenceRequest, InferenceResponse, RequestedOutput
from modelyard.model import list_frameworks

Weights: TypeAlias = Mapping[int, float] | Mapping[str, float] | Mapping[int | str, float]
"""Percent by revision: by number, label, or either."""
Progress: TypeAlias = Callable[[ModelStatus], object]
"""Called, while something is waited for, with the first status and with each that differs from the last."""
DEFAULT_URL: Final = "http://127.0.0.1:8000"
_REGISTERED: Final = "registered"


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


class RegisteringSpec(TypedDict, total=False):
    """What ``register_spec`` takes besides, for those who check types; :meth:`Platform.register` says what each is."""

    message: str
    wait: bool
    timeout_s: float
    on_progress: Progress | None
    expected_generation: int | None


class Registering(RegisteringSpec, total=False):
    """The same of ``register``."""

    uri: str
    options: Mapping[str, Any] | None
    version_policy: Mapping[str, Any] | None
    batching: Mapping[str, Any] | None
    autoscaling: Mapping[str, Any] | None
    resources: Mapping[str, Any] | None
    limits: Mapping[str, Any] | None
    runtime: Mapping[str, Any] | None
    rollout: Mapping[str, Any] | None
    warmup: Sequence[Mapping[str, Any]]
    sticky: str | None
    shared: bool
    description: str


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
        actor: Who changes models, for their history; see :meth:`Platform.connect`.
    """

    def __init__(self, transport: AdminTransport, *, actor: str | None = None) -> None:
        self._transport = transport
        self._actor = find_actor(actor)

    @classmethod
    def connect(
        cls, url: str | None = None, *, token: str | None = None, timeout_s: float = 30.0, actor: str | None = None
    ) -> Self:
        """A client; nothing is sent yet. See :meth:`Platform.connect`."""
        return cls(open_transport(url, token=token, timeout_s=timeout_s), actor=actor)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    @overload
    async def register(
        self, name: str, *, framework: str, dry_run: Literal[False] = ..., **more: Unpack[Registering]
    ) -> ModelStatus: ...
    @overload
    async def register(
        self, name: str, *, framework: str, dry_run: Literal[True], **more: Unpack[Registering]
    ) -> Plan: ...
    @overload
    async def register(
        self, name: str, *, framework: str, dry_run: bool, **more: Unpack[Registering]
    ) -> ModelStatus | Plan: ...
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
        rollout: Mapping[str, Any] | None = None,
        warmup: Sequence[Mapping[str, Any]] = (),
        sticky: str | None = None,
        shared: bool = False,
        description: str = "",
        message: str = "",
        wait: bool = False,
        timeout_s: float = 60.0,
        on_progress: Progress | None = None,
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus | Plan:
        """See :meth:`Platform.register`."""
        sections = {
            "options": options,
            "version_policy": version_policy,
            "batching": batching,
            "autoscaling": autoscaling,
            "resources": resources,
            "limits": limits,
            "runtime": runtime,
            "rollout": rollout,
        }
        given: dict[str, Any] = {key: dict(value) for key, value in sections.items() if value is not None}
        given |= {"name": name, "framework": framework, "uri": uri, "description": description, "sticky": sticky}
        given |= {"warmup": list(map(dict, warmup)), "shared": shared}
        spec = parse_model_spec(given)
        return await self.register_spec(
            spec,
            message=message,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=on_progress,
            expected_generation=expected_generation,
            dry_run=dry_run,
        )

    @overload
    async def register_spec(
        self, spec: ModelSpec, *, dry_run: Literal[False] = ..., **more: Unpack[RegisteringSpec]
    ) -> ModelStatus: ...
    @overload
    async def register_spec(
        self, spec: ModelSpec, *, dry_run: Literal[True], **more: Unpack[RegisteringSpec]
    ) -> Plan: ...
    @overload
    async def register_spec(
        self, spec: ModelSpec, *, dry_run: bool, **more: Unpack[RegisteringSpec]
    ) -> ModelStatus | Plan: ...
    async def register_spec(
        self,
        spec: ModelSpec,
        *,
        message: str = "",
        wait: bool = False,
        timeout_s: float = 60.0,
        on_progress: Progress | None = None,
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus | Plan:
        """See :meth:`Platform.register_spec`."""
        check_locally(spec)
        if dry_run:
            return await self._transport.plan(spec.to_json(), expected_generation=expected_generation)
        status = await self._transport.register(spec.to_json(), **self._by(message, expected_generation))
        return await self._wait_made(status, timeout_s, on_progress) if wait else status

    async def export(self, names: Sequence[str] = (), *, all_owners: bool = False) -> tuple[dict[str, Any], ...]:
        """See :meth:`Platform.export`."""
        if not names:
            known = await self._transport.list()
            kept = [model for model in known if model.state is not ModelState.REMOVING]
            names = [model.name for model in kept if all_owners or model.owner == _REGISTERED]
        return tuple([await self._transport.spec(name) for name in names])

    async def import_(
        self, specs: Iterable[Mapping[str, Any] | ModelSpec], *, message: str = "", dry_run: bool = False
    ) -> tuple[Plan, ...]:
        """See :meth:`Platform.import_`."""
        models = parse_section(ModelsFile, {"models": list(specs)}).models
        plans = await self._plan_all(models)
        for spec, plan in zip(models, plans, strict=True):
            if not dry_run and plan.action is not Action.NOTHING:
                await self._transport.register(spec.to_json(), **self._by(message, plan.generation))
        return plans

    async def _plan_all(self, models: Sequence[ModelSpec]) -> tuple[Plan, ...]:
        """What registering each of them would do.

        Raises:
            InvalidConfig: With the problems of all of them, ``models[2].options.x: …``.
        """
        plans: list[Plan] = []
        problems: list[str] = []
        for index, spec in enumerate(models):
            try:
                check_locally(spec)
                plans.append(await self._transport.plan(spec.to_json()))
            except InvalidConfig as exc:
                problems += [f"models[{index}].{problem}" for problem in exc.problems]
            except (Conflict, Forbidden) as exc:
                problems.append(f"models[{index}]: {exc}")
        if problems:
            raise InvalidConfig(tuple(problems))
        return tuple(plans)

    async def unregister(
        self,
        name: str,
        *,
        message: str = "",
        wait: bool = False,
        timeout_s: float = 60.0,
        on_progress: Progress | None = None,
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """See :meth:`Platform.unregister`."""
        status = await self._transport.unregister(name, **self._by(message, expected_generation, dry_run=dry_run))
        return (
            await _follow(GoneWait(self._transport, status, timeout_s), on_progress) if wait and not dry_run else status
        )

    async def load(
        self,
        name: str,
        *,
        message: str = "",
        wait: bool = False,
        timeout_s: float = 60.0,
        on_progress: Progress | None = None,
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """See :meth:`Platform.load`."""
        status = await self._transport.load(name, **self._by(message, expected_generation, dry_run=dry_run))
        return await self._wait_made(status, timeout_s, on_progress) if wait and not dry_run else status

    async def unload(
        self,
        name: str,
        *,
        message: str = "",
        wait: bool = False,
        timeout_s: float = 60.0,
        on_progress: Progress | None = None,
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """See :meth:`Platform.unload`."""
        status = await self._transport.unload(name, **self._by(message, expected_generation, dry_run=dry_run))
        return (
            await _follow(UnloadWait(self._transport, status, timeout_s), on_progress)
            if wait and not dry_run
            else status
        )

    async def set_traffic(
        self,
        name: str,
        weights: Weights | None = None,
        *,
        shadow: int | str | Mapping[str, Any] | EllipsisType | None = ...,
        message: str = "",
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """See :meth:`Platform.set_traffic`."""
        change: dict[str, Any] = {}
        if weights is not None:
            change["weights"] = {str(revision): weight for revision, weight in weights.items()}
        if shadow is not ...:
            change["shadow"] = {"revision": shadow} if isinstance(shadow, int | str) else shadow and dict(shadow)
        if not change:
            raise InvalidConfig(("weights: expected percents by revision, or a shadow, got neither",))
        parse_section(TrafficPlan, change)
        return await self._transport.set_traffic(
            name, change, **self._by(message, expected_generation, dry_run=dry_run)
        )

    async def set_label(
        self,
        name: str,
        label: str,
        revision: int | str,
        *,
        message: str = "",
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """See :meth:`Platform.set_label`."""
        return await self._transport.set_label(
            name, label, str(revision), **self._by(message, expected_generation, dry_run=dry_run)
        )

    async def remove_label(
        self, name: str, label: str, *, message: str = "", expected_generation: int | None = None, dry_run: bool = False
    ) -> ModelStatus:
        """See :meth:`Platform.remove_label`."""
        return await self._transport.set_label(
            name, label, None, **self._by(message, expected_generation, dry_run=dry_run)
        )

    async def rollout(
        self,
        name: str,
        to: int | str,
        *,
        steps: Sequence[float] | None = None,
        interval_s: float | None = None,
        min_requests: int | None = None,
        gates: Mapping[str, float | None] | None = None,
        message: str = "",
        wait: bool = False,
        timeout_s: float = 3600.0,
        on_progress: Progress | None = None,
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """See :meth:`Platform.rollout`."""
        plan: dict[str, Any] = {"to": to}
        if steps is not None:
            plan["steps"] = list(steps)
        if gates is not None:
            plan["gates"] = dict(gates)
        limits = {"interval_s": interval_s, "min_requests": min_requests}
        plan |= {key: value for key, value in limits.items() if value is not None}
        parse_section(RolloutPlan, plan)
        status = await self._transport.rollout(name, plan, **self._by(message, expected_generation, dry_run=dry_run))
        return (
            await _follow(RolloutWait(self._transport, status, timeout_s), on_progress)
            if wait and not dry_run
            else status
        )

    async def promote(
        self,
        name: str,
        revision: int | str | None = None,
        *,
        message: str = "",
        wait: bool = False,
        timeout_s: float = 60.0,
        on_progress: Progress | None = None,
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """See :meth:`Platform.promote`."""
        status = await self._transport.promote(
            name, _reference(revision), **self._by(message, expected_generation, dry_run=dry_run)
        )
        return (
            await _follow(RolloutWait(self._transport, status, timeout_s), on_progress)
            if wait and not dry_run
            else status
        )

    async def rollback(
        self,
        name: str,
        revision: int | str | None = None,
        *,
        message: str = "",
        wait: bool = False,
        timeout_s: float = 60.0,
        on_progress: Progress | None = None,
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """See :meth:`Platform.rollback`."""
        status = await self._transport.rollback(
            name, _reference(revision), **self._by(message, expected_generation, dry_run=dry_run)
        )
        return (
            await _follow(RolloutWait(self._transport, status, timeout_s), on_progress)
            if wait and not dry_run
            else status
        )

    async def abort(
        self, name: str, *, message: str = "", expected_generation: int | None = None, dry_run: bool = False
    ) -> ModelStatus:
        """See :meth:`Platform.abort`."""
        return await self._transport.abort(name, **self._by(message, expected_generation, dry_run=dry_run))

    async def pause(
        self, name: str, *, message: str = "", expected_generation: int | None = None, dry_run: bool = False
    ) -> ModelStatus:
        """See :meth:`Platform.pause`."""
        return await self._transport.pause(name, **self._by(message, expected_generation, dry_run=dry_run))

    async def resume(
        self, name: str, *, message: str = "", expected_generation: int | None = None, dry_run: bool = False
    ) -> ModelStatus:
        """See :meth:`Platform.resume`."""
        return await self._transport.resume(name, **self._by(message, expected_generation, dry_run=dry_run))

    async def pools(self) -> tuple[Pool, ...]:
        """See :meth:`Platform.pools`."""
        return await self._transport.pools()

    async def revisions(self, name: str) -> tuple[Revision, ...]:
        """See :meth:`Platform.revisions`."""
        return await self._transport.revisions(name)

    async def events(self, name: str | None = None, *, limit: int = 100) -> tuple[Event, ...]:
        """See :meth:`Platform.events`."""
        return await self._transport.events(name, after=None, limit=limit)

    async def watch(self, name: str | None = None, *, after: int | None = None) -> AsyncGenerator[Event]:
        """See :meth:`Platform.watch`."""
        watching = EventWatch(self._transport, name, after)
        while True:
            for event in await watching.next():
                yield event

    async def list(self) -> tuple[ModelStatus, ...]:
        """See :meth:`Platform.list`."""
        return await self._transport.list()

    async def status(self, name: str) -> ModelStatus:
        """See :meth:`Platform.status`."""
        return await self._transport.status(name)

    async def wait_ready(self, name: str, timeout_s: float = 60.0) -> ModelStatus:
        """See :meth:`Platform.wait_ready`."""
        status = await self._transport.status(name)
        return await _follow(ReadyWait(self._transport, status, timeout_s), None)

    async def predict(
        self,
        name: str,
        inputs: Any,
        *,
        outputs: Sequence[str] = (),
        version: str | int | None = None,
        parameters: Mapping[str, bool | int | float | str] | None = None,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> InferenceResponse:
        """See :meth:`Platform.predict`."""
        request = InferenceRequest(
            to_tensors(inputs), outputs=tuple(map(RequestedOutput, outputs)), parameters=dict(parameters or {})
        )
        return await self.infer(name, request, version=version, timeout_s=timeout_s, headers=headers)

    async def infer(
        self,
        name: str,
        request: InferenceRequest,
        *,
        version: str | int | None = None,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> InferenceResponse:
        """See :meth:`Platform.infer`."""
        revision = "" if version is None else str(version)
        if not headers:
            return await self._transport.infer(name, revision, request, timeout_s=timeout_s)
        if not isinstance(self._transport, HttpTransport):
            raise Unsupported("headers travel over HTTP only, and this is the platform in the cluster: give its url")
        return await self._transport.infer(name, revision, request, timeout_s=timeout_s, headers=headers)

    def _by(self, message: str, expected_generation: int | None, *, dry_run: bool = False) -> By:
        by: By = {"actor": self._actor, "message": message, "expected_generation": expected_generation}
        return {**by, "dry_run": True} if dry_run else by

    async def _wait_made(self, status: ModelStatus, timeout_s: float, on_progress: Progress | None) -> ModelStatus:
        """Waits for the revision that a change has made, whichever answers meanwhile."""
        return await _follow(ReadyWait(self._transport, status, timeout_s, made_revision(status)), on_progress)


async def _follow(waiting: Wait, on_progress: Progress | None) -> ModelStatus:
    """The last status, when it is done."""
    found: ModelStatus | None = waiting.status
    while found is not None:
        if on_progress is not None:
            on_progress(found)
        found = await waiting.next()
    return waiting.status


def _reference(revision: int | str | None) -> str | None:
    return None if revision is None else str(revision)
