# SPDX-License-Identifier: Apache-2.0
"""The controller: makes Serve run what the catalog wants, again and again, and tells the ingress replicas.

It holds nothing that it could not find out again, so it may be killed at any moment: the catalog is durable, Serve
keeps the applications, and the ingress replicas keep their last route table.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from modelyard.admin import ModelState, ModelStatus
from modelyard.catalog import Catalog, ModelEntry, ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.config import ModelSpec, PlatformConfig, load_model_spec
from modelyard.errors import InvalidConfig, ModelLoadError, ModelNotFound, ModelyardError
from modelyard.model import find_model_path, get_framework
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve.applications import (
    Observed,
    RevisionDeployment,
    application_name,
    is_revision_application,
)
from modelyard.serve.failures import clear_failure, find_failure
from modelyard.serve.logs import join_serve_log
from modelyard.serve.plan import ModelPlan, RevisionState, plan_model
from modelyard.serve.replica import DEPLOYMENT_NAME
from modelyard.signature import Signature
from modelyard.store import check_allowed, digest, resolve

logger = logging.getLogger(__name__)

CONTROLLER_NAME: Final = "Controller"
_POLL_BUSY_S: Final = 0.25
_DESCRIBE_TIMEOUT_S: Final = 5.0
_LEAVE_AFTER_S: Final = 1.0
_LONG_POLL_S: Final = 20.0
_DIED_LOADING: Final = "its process died while loading; the application's log has the details"
_ABSENT: Final = "absent"


class Controller:
    """The Serve deployment behind the ingress; one replica.

    Args:
        args: ``PlatformConfig`` as JSON values.
    """

    def __init__(self, args: Mapping[str, Any]) -> None:
        join_serve_log()
        self._config = PlatformConfig.model_validate(args)
        self._application = serve.get_replica_context().app_name
        self._loop = asyncio.get_running_loop()
        self._catalog = Catalog(self._config.catalog.url)
        self._deployed: dict[str, str] = {}
        self._signatures: dict[str, Signature] = {}
        self._failures: dict[str, str] = {}
        self._plans: dict[str, ModelPlan] = {}
        self._table = RouteTable(epoch=uuid.uuid4().hex)
        self._leaving: dict[str, float] = {}
        self._clock = time.monotonic
        self._is_settled = False
        self._lock = threading.Lock()
        self._watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._wake = threading.Event()
        self._stopping = False
        self._declare(self._config.models)
        self._thread = threading.Thread(target=self._reconcile_forever, name="reconcile", daemon=True)
        self._thread.start()

    # -- what ingress replicas and model replicas call

    async def watch(self, epoch: str, version: int) -> tuple[RouteTable, bool]:
        """The route table as soon as it differs from the caller's, or after a while anyway.

        Args:
            epoch: Of the caller's table.
            version: Of the caller's table.

        Returns:
            The table, and whether every declared model is ready or has definitely failed.
        """
        event = asyncio.Event()
        watcher = (asyncio.get_running_loop(), event)
        with self._lock:
            # Version 0 is not a table yet: the ingress replicas keep their last one until this controller has looked.
            if self._table.version and (self._table.epoch, self._table.version) != (epoch, version):
                return self._table, self._is_settled
            self._watchers.add(watcher)
        try:
            await asyncio.wait_for(event.wait(), _LONG_POLL_S)
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._watchers.discard(watcher)
        return self._table, self._is_settled

    # -- the verbs of the admin API

    async def register(self, spec: dict[str, Any], actor: str, message: str) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.register``; errors are returned, for Serve would wrap what is raised."""
        return await asyncio.to_thread(self._answer, self._register, spec, actor, message)

    async def unregister(self, name: str, actor: str, message: str) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.unregister``; errors are returned."""
        return await asyncio.to_thread(self._answer, self._unregister, name, actor, message)

    async def list_models(self) -> tuple[ModelStatus, ...]:
        """See ``AdminTransport.list``."""
        records = await asyncio.to_thread(self._catalog.list_models)
        return tuple(self._status(record) for record in records)

    async def status(self, name: str) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.status``; errors are returned."""
        record = await asyncio.to_thread(self._catalog.find_model, name)
        return self._status(record) if record is not None else ModelNotFound(name)

    @staticmethod
    def _answer(verb: Any, *args: Any) -> ModelStatus | ModelyardError:
        try:
            result: ModelStatus = verb(*args)
        except ModelyardError as error:
            return error
        return result

    def _register(self, data: dict[str, Any], actor: str, message: str) -> ModelStatus:
        spec = load_model_spec(data)
        try:
            artifact = self._check_artifact(spec)
        except ModelLoadError as exc:
            raise InvalidConfig((f"uri: {exc}",)) from exc
        record = self._catalog.put_model(
            spec.name,
            owner=Owner.REGISTERED,
            spec=spec.to_json(),
            content=spec.revision_content(),
            digest=spec.revision_digest(artifact),
            actor=actor,
            message=message,
        )
        self._try_again(application_name(record.name, record.active.number))
        self._wake.set()
        return self._status(record)

    def _try_again(self, application: str) -> None:
        """Whoever registers a model that has failed, also unchanged, wants another attempt."""
        if self._failures.pop(application, None) is not None:
            clear_failure(application)
            self._deployed.pop(application, None)

    def _unregister(self, name: str, actor: str, message: str) -> ModelStatus:
        record = self._catalog.remove_model(name, actor=actor, message=message, owner=Owner.REGISTERED)
        self._wake.set()
        return self._status(record)

    def _check_artifact(self, spec: ModelSpec) -> str:
        """The artifact's digest.

        Raises:
            ModelLoadError: It is not there, or the framework does not find its file in it.
            Forbidden: Its format can run code, and it lies outside the allowed locations.
        """
        path = resolve(spec.uri)
        framework = get_framework(spec.framework)
        if framework.loads_code:
            check_allowed(path, self._config.security.model_roots)
        options = framework.options.model_validate(spec.options)
        find_model_path(path, framework, options.model_file)
        return digest(path)

    def _declare(self, specs: Sequence[ModelSpec]) -> None:
        """Brings the declared models into the catalog. An artifact that is missing fails its own model only."""
        entries: list[ModelEntry] = []
        refused: dict[str, str] = {}
        for spec in specs:
            artifact = _ABSENT
            try:
                artifact = self._check_artifact(spec)
            except ModelyardError as exc:
                refused[spec.name] = str(exc)
            entries.append(
                ModelEntry(spec.name, spec.to_json(), spec.revision_content(), spec.revision_digest(artifact))
            )
        for record in self._catalog.sync_declared(entries):
            if record.name in refused:
                self._failures[application_name(record.name, record.active.number)] = refused[record.name]

    # -- reconciliation, in a thread of its own

    def _reconcile_forever(self) -> None:
        while not self._stopping:
            try:
                is_busy = self._reconcile()
            except Exception:
                # Serve, the catalog or a replica may be away for a moment; the next round begins from scratch.
                logger.exception("reconciling failed; trying again")
                is_busy = False
            interval = _POLL_BUSY_S if is_busy else self._config.controller.reconcile_interval_s
            self._wake.wait(interval)
            self._wake.clear()

    def _reconcile(self) -> bool:
        """One round; True when something is still on its way."""
        applications = serve.status().applications
        own = applications.get(self._application)
        if own is None or own.status is ApplicationStatus.DELETING:
            return False  # Serve takes everything down; what it has removed is not to be put up again
        observed = self._observe(applications)
        models = self._catalog.list_models()
        self._describe(observed)
        by_model: dict[str, dict[str, Observed]] = defaultdict(dict)
        for name, seen in observed.items():
            by_model[name.rpartition("@")[0]][name] = seen
        plans = {
            model.name: plan_model(model, by_model.pop(model.name, {}), self._signatures, self._failures)
            for model in models
        }
        self._plans = plans
        self._publish([model for model in models if not plans[model.name].purge], plans)
        targets, deleted = [], [name for orphans in by_model.values() for name in orphans]
        for model in models:
            plan = plans[model.name]
            deleted.extend(plan.delete)
            if plan.deploy:
                deployment = RevisionDeployment.from_records(model, _revision(model, plan.newest.number))
                if self._deployed.get(deployment.application) != deployment.fingerprint:
                    targets.append(deployment)
            if plan.purge:
                self._catalog.purge_model(model.name)
                self._forget(model.name)
        self._delete(deleted, observed)
        self._deploy(targets)
        settled = (ModelState.READY, ModelState.FAILED)
        return bool(targets or deleted) or any(
            plan.newest.state not in settled or plan.serving is None for plan in plans.values()
        )

    def _forget(self, model: str) -> None:
        """The next model of that name begins at revision 1 again, and is not to inherit this one's failures."""
        for application in [name for name in self._failures if name.rpartition("@")[0] == model]:
            del self._failures[application]
            clear_failure(application)

    def _observe(self, applications: Mapping[str, ApplicationStatusOverview]) -> dict[str, Observed]:
        observed = {
            name: Observed.from_status(overview)
            for name, overview in applications.items()
            if is_revision_application(name, overview.deployments)
        }
        for name in set(self._signatures) - set(observed):
            del self._signatures[name]
        for name in set(self._deployed) - set(observed):
            del self._deployed[name]
        for name, seen in observed.items():
            if seen.running:
                self._failures.pop(name, None)
            elif name not in self._failures:
                reason = find_failure(name) or (_DIED_LOADING if seen.has_failed else None)
                if reason is not None:
                    logger.warning("%s cannot be loaded: %s", name, reason)
                    self._failures[name] = reason
        return observed

    def _describe(self, observed: Mapping[str, Observed]) -> None:
        """Asks the applications that have begun to run for their signatures."""
        asked = {
            name: asyncio.run_coroutine_threadsafe(_ask_signature(name), self._loop)
            for name, seen in observed.items()
            if seen.running and name not in self._signatures and not seen.is_deleting
        }
        until = time.monotonic() + _DESCRIBE_TIMEOUT_S
        for name, future in asked.items():
            try:
                self._signatures[name] = future.result(max(0.0, until - time.monotonic()))
            except Exception as exc:  # noqa: BLE001  # the replica may have gone; the next round asks again
                future.cancel()
                logger.info("%s does not describe itself yet: %s", name, type(exc).__name__)

    def _deploy(self, deployments: Sequence[RevisionDeployment]) -> None:
        if not deployments:
            return
        for deployment in deployments:
            clear_failure(deployment.application)
        serve.run_many(
            [deployment.to_target() for deployment in deployments],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        for deployment in deployments:
            self._deployed[deployment.application] = deployment.fingerprint

    def _delete(self, names: Sequence[str], observed: Mapping[str, Observed]) -> None:
        """Takes applications down, once every ingress has had time to send its requests elsewhere."""
        now = self._clock()
        self._leaving = {name: self._leaving.get(name, now) for name in names}
        for name, since in self._leaving.items():
            if now - since >= _LEAVE_AFTER_S and not observed[name].is_deleting:
                serve.delete(name, _blocking=False)
                self._deployed.pop(name, None)

    # -- what others see

    def _publish(self, models: Sequence[ModelRecord], plans: Mapping[str, ModelPlan]) -> None:
        routes = {model.name: self._model_route(model, plans[model.name]) for model in models}
        done = (ModelState.READY, ModelState.FAILED)
        is_settled = all(
            plans[model.name].newest.state in done
            for model in models
            if model.owner is Owner.DECLARED and model.wanted is Wanted.SERVING
        )
        with self._lock:
            settles = is_settled and not self._is_settled
            if routes == self._table.models and not settles and self._table.version:
                return
            self._is_settled = self._is_settled or is_settled
            self._table = RouteTable(self._table.epoch, self._table.version + 1, routes)
            watchers = list(self._watchers)
        for loop, event in watchers:
            loop.call_soon_threadsafe(event.set)

    def _model_route(self, model: ModelRecord, plan: ModelPlan) -> ModelRoute:
        serving = plan.serving or RevisionState(plan.newest.number, ModelState.REMOVING, "it is being removed")
        spec = ModelSpec.model_validate(model.spec)
        application = application_name(model.name, serving.number)
        route = RevisionRoute(
            model=model.name,
            version=str(serving.number),
            application=application,
            framework=spec.framework,
            state=serving.state.value,
            reason=serving.reason,
            signature=self._signatures.get(application),
            max_batch_size=spec.batching.max_batch_size,
            batch_wait_timeout_s=spec.batching.batch_wait_timeout_s,
            max_inflight_requests=min(
                spec.limits.max_queued_requests + max(1, serving.running) * spec.max_ongoing_requests,
                self._config.ingress.max_inflight_per_model,
            ),
            request_timeout_s=spec.limits.request_timeout_s,
            replicas=serving.running,
        )
        labels = {label: str(number) for label, number in model.labels.items() if number == serving.number}
        created = int(datetime.fromisoformat(model.created_at).timestamp())
        return ModelRoute(model.name, route.version, {route.version: route}, labels, created)

    def _status(self, record: ModelRecord) -> ModelStatus:
        plan = self._plans.get(record.name)
        newest = max(revision.number for revision in record.revisions)
        if record.wanted is Wanted.REMOVED:
            state = RevisionState(newest, ModelState.REMOVING, "it answers what it has accepted, then goes")
        elif plan is None or plan.serving is None or plan.newest.number != newest:
            state = RevisionState(newest, ModelState.PENDING, "its replicas are being created")
        elif plan.serving.state is ModelState.READY and plan.newest.state is ModelState.FAILED:
            reason = f"revision {newest} failed and gets no traffic: {plan.newest.reason}"
            state = RevisionState(
                plan.serving.number, ModelState.READY, reason, plan.serving.running, plan.serving.wanted
            )
        else:
            state = plan.newest
        signature = self._signatures.get(application_name(record.name, state.number))
        return ModelStatus(
            name=record.name,
            framework=record.spec["framework"],
            uri=record.spec["uri"],
            owner=record.owner.value,
            state=state.state,
            reason=state.reason,
            version=str(state.number),
            replicas_ready=state.running,
            replicas_wanted=state.wanted,
            url_path=f"/v2/models/{record.name}",
            created_at=record.created_at,
            updated_at=record.updated_at,
            inputs=signature.inputs if signature else (),
            outputs=signature.outputs if signature else (),
            message=record.active.message,
        )

    def check_health(self) -> None:
        """Healthy while reconciliation goes on.

        Raises:
            RuntimeError: Its thread has ended.
        """
        if not self._thread.is_alive():
            raise RuntimeError("reconciliation has ended")

    def __del__(self) -> None:
        """Serve calls it when the controller stops."""
        self._stopping = True
        if hasattr(self, "_wake"):
            self._wake.set()


async def _ask_signature(application: str) -> Signature:
    """What a replica of this application says of itself; Serve's handles want an event loop."""
    handle = serve.get_deployment_handle(DEPLOYMENT_NAME, app_name=application)
    signature: Signature = await handle.describe.remote()
    return signature


def _revision(model: ModelRecord, number: int) -> RevisionRecord:
    return next(revision for revision in model.revisions if revision.number == number)
