# SPDX-License-Identifier: Apache-2.0
"""The controller: makes Serve run what the catalog wants, again and again, and tells the ingress replicas.

It holds nothing that it could not find out again, so it may be killed at any moment: the catalog is durable, Serve
keeps the applications, and the ingress replicas keep their last route table.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

import ray
from ray import serve

from modelyard.admin import Event, ModelState, ModelStatus, Plan, Pool, Revision
from modelyard.catalog import Catalog, ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.config import PlatformConfig
from modelyard.errors import Conflict, InternalError, InvalidConfig, ModelNotFound, ModelyardError, Unavailable
from modelyard.outcomes import Outcomes
from modelyard.routing import ModelRoute, RouteTable
from modelyard.serve.applications import (
    RevisionDeployment,
    application_name,
)
from modelyard.serve.autoscaling import clear_decision, find_decision
from modelyard.serve.builds import Builds
from modelyard.serve.descriptions import clear_description, find_description, list_descriptions
from modelyard.serve.failures import clear_failure, list_failed
from modelyard.serve.knowledge import Knowledge
from modelyard.serve.logs import join_serve_log
from modelyard.serve.news import News
from modelyard.serve.observed import Observed, read_applications
from modelyard.serve.placement import find_misfit
from modelyard.serve.plan import ModelPlan, failed_plan, plan_model
from modelyard.serve.pools import PoolDeployment, Pools, is_pool
from modelyard.serve.registrations import LEFT_OUT, UNUSABLE, Registrations
from modelyard.serve.residents import Resident
from modelyard.serve.rollouts import Rollouts, Traffic
from modelyard.serve.views import failed_route, model_route, model_status, show_revisions

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_POLL_BUSY_S: Final = 0.25
_DECISION_TIMEOUT_S: Final = 1.0
_LEAVE_AFTER_S: Final = 1.0
_LEAVE_ASLEEP_AFTER_S: Final = 3.0
_GIVE_UP_AFTER_S: Final = 10.0
_LONG_POLL_S: Final = 20.0
_FIRST_LOOK_S: Final = 10.0
_EVENTS_S: Final = 0.5
_TRY_AGAIN_S: Final = 5.0
_READERS: Final = 16
_UNFIT_S: Final = 60.0
_STUCK_S: Final = 300.0
"""No round takes so long: what it asks of Ray does not come back."""
_SETTLED: Final = (ModelState.READY, ModelState.FAILED, ModelState.UNLOADED)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one round finds out about one model.

    Attributes:
        plan: What is to be done.
        route: What the ingress replicas are told.
        deployments: Of the revisions whose applications must exist.
    """

    plan: ModelPlan
    route: ModelRoute
    deployments: tuple[RevisionDeployment, ...] = ()


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
        self._catalog = Catalog(self._config.catalog.url, keep_events=self._config.catalog.keep_events)
        self._deployed: dict[str, str] = {}
        self._read: dict[str, tuple[tuple[str, int, str], RevisionDeployment]] = {}
        self._builds = Builds()
        self._pools = Pools(self._config.pools, self._application)
        self._knowledge = Knowledge(self._pools, self._loop)
        self._asking = ThreadPoolExecutor(1, "asking")  # of its own: where it hangs, nothing else does
        self._news = News(self._catalog)
        self._reading = ThreadPoolExecutor(_READERS, "reading")  # of large artifacts: other verbs do not wait for it
        self._unfit: dict[str, tuple[str, float]] = {}
        self._waiting: dict[str, str] = {}
        self._refused: dict[str, tuple[float, str]] = {}
        self._plans: dict[str, ModelPlan] = {}
        self._table = RouteTable(epoch=uuid.uuid4().hex)
        self._leaving: dict[str, float] = {}
        self._clock = time.monotonic
        self._began = self._round_began = self._clock()
        self._is_settled = False
        self._lock = threading.Lock()
        self._moving = threading.Lock()  # of a traffic that moves, nobody is told before the ingress replicas are
        self._watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._registrations = Registrations(
            self._catalog, self._config, self._knowledge.failures, self._find_plan, self._wake.set
        )
        self._traffic = Traffic(self._catalog, self._is_ready, self._registrations.try_again)
        self._rehearsed_traffic = Traffic(self._catalog.rehearsal(), self._is_ready, lambda name, number: None)
        self._rollouts = Rollouts(self._catalog, self._registrations.try_again)
        self._registrations.declare(self._config.models)
        self._admit_again()
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._reconcile_forever, self._watch_versions)
        ]
        for thread in self._threads:
            thread.start()

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

    async def residents(
        self, known: dict[str, str], failed: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, Resident | None]:
        """What has changed of the models that a pool's replica knows; see ``Pools.find``.

        Args:
            known: See there.
            failed: Why models cannot be loaded, by key; of interest are those that could be before.
        """
        await self._look_first()
        if not self._table.version:
            return {}
        self._pools.lose(failed, self._knowledge.described)
        return self._pools.find(known)

    async def _look_first(self) -> None:
        """A controller that has just begun does not speak of models before it has looked at them."""
        if not self._table.version:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.watch("", -1), _FIRST_LOOK_S)

    # -- the verbs of the admin API

    async def register(
        self, spec: dict[str, Any], actor: str, message: str, expected_generation: int | None = None
    ) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.register``; errors are returned, for Serve would wrap what is raised."""
        registered = partial(self._registrations.register, spec, actor, message, expected_generation)
        return await self._answer(lambda: self._changed(registered()), executor=self._reading)

    async def plan(self, spec: dict[str, Any], expected_generation: int | None = None) -> Plan | ModelyardError:
        """See ``AdminTransport.plan``; errors are returned."""
        return await self._answer(self._registrations.plan, spec, expected_generation, executor=self._reading)

    async def spec(self, name: str) -> dict[str, Any] | ModelyardError:
        """See ``AdminTransport.spec``; errors are returned."""
        return await self._answer(self._registrations.spec, name)

    async def reload(
        self, specs: list[dict[str, Any]], actor: str, message: str
    ) -> tuple[ModelStatus, ...] | ModelyardError:
        """See ``reload.ReloadTransport.reload``; errors are returned."""
        return await self._answer(self._reload, specs, actor, message, executor=self._reading)

    async def unregister(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.unregister``; errors are returned."""
        return await self._change(self._registrations.unregister, *args, **by)

    async def load(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.load``; errors are returned."""
        return await self._change(self._registrations.load, *args, executor=self._reading, **by)

    async def unload(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.unload``; errors are returned."""
        return await self._change(self._registrations.unload, *args, **by)

    async def set_traffic(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.set_traffic``; errors are returned, as by the next seven."""
        return await self._move(Traffic.set_traffic, *args, **by)

    async def set_label(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.set_label``."""
        return await self._move(Traffic.set_label, *args, **by)

    async def rollout(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.rollout``."""
        return await self._move(Traffic.roll_out, *args, **by)

    async def promote(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.promote``."""
        return await self._move(Traffic.promote, *args, **by)

    async def rollback(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.rollback``."""
        return await self._move(Traffic.roll_back, *args, **by)

    async def abort(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.abort``."""
        return await self._move(Traffic.abort, *args, **by)

    async def pause(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.pause``."""
        return await self._move(Traffic.pause, *args, **by)

    async def resume(self, *args: Any, **by: Any) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.resume``."""
        return await self._move(Traffic.resume, *args, **by)

    async def _move(
        self, verb: Callable[..., ModelRecord], *args: Any, dry_run: bool = False, **by: Any
    ) -> ModelStatus | ModelyardError:
        if dry_run:
            return await self._answer(lambda: self._foresee(partial(verb, self._rehearsed_traffic), *args, **by))
        return await self._answer(lambda: self._changed(verb(self._traffic, *args, **by)))

    async def _change(
        self,
        verb: Callable[..., ModelRecord],
        *args: Any,
        dry_run: bool = False,
        executor: ThreadPoolExecutor | None = None,
        **by: Any,
    ) -> ModelStatus | ModelyardError:
        if dry_run:
            foreseen = partial(self._foresee, partial(verb, dry_run=True), *args, **by)
            return await self._answer(foreseen, executor=executor)
        return await self._answer(lambda: self._changed(verb(*args, **by)), executor=executor)

    async def revisions(self, name: str) -> tuple[Revision, ...] | ModelyardError:
        """See ``AdminTransport.revisions``; errors are returned."""
        return await self._answer(self._revisions, name)

    async def list_pools(self) -> tuple[Pool, ...]:
        """See ``AdminTransport.pools``."""
        return await self._pools.report()

    async def events(self, name: str | None, after: int | None, limit: int) -> tuple[Event, ...] | ModelyardError:
        """See ``AdminTransport.events``; errors are returned."""
        until = self._clock() + _LONG_POLL_S
        while True:
            found = await self._answer(self._events, name, after, limit)
            if isinstance(found, ModelyardError) or found or after is None or self._clock() > until:
                return found
            await asyncio.sleep(_EVENTS_S)

    async def report(self, counts: Mapping[str, Outcomes]) -> None:
        """What became of requests to revisions on trial, since the last report of whoever sends this."""
        if self._rollouts.report(counts):
            self._wake.set()

    async def list_models(self) -> tuple[ModelStatus, ...] | ModelyardError:
        """See ``AdminTransport.list``; errors are returned."""
        return await self._answer(self._list_models)

    async def status(self, name: str) -> ModelStatus | ModelyardError:
        """See ``AdminTransport.status``; errors are returned."""
        status = await self._answer(self._tell, name)
        if isinstance(status, ModelyardError):
            return status
        application = application_name(name, int(status.version or 0))
        resident = self._pools.residents.get(application)
        asked = self._asking.submit(find_decision, resident.pool if resident is not None else application)
        try:
            return replace(status, scaling=await asyncio.wait_for(asyncio.wrap_future(asked), _DECISION_TIMEOUT_S))
        except Exception as exc:  # noqa: BLE001  # while Ray's head is away, its store does not answer for long
            logger.info("what was decided of %s is not known: %s", application, type(exc).__name__)
            return status

    async def _answer(
        self, verb: Callable[..., _T], *args: Any, executor: ThreadPoolExecutor | None = None
    ) -> _T | ModelyardError:
        await self._look_first()
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, verb, *args)
        except ModelyardError as error:
            return error

    def _list_models(self) -> tuple[ModelStatus, ...]:
        with self._moving:
            return tuple(self._status(record) for record in self._catalog.list_models())

    def _tell(self, name: str) -> ModelStatus:
        with self._moving:
            record = self._catalog.find_model(name)
            if record is None:
                raise ModelNotFound(name)
            return self._status(record)

    def _revisions(self, name: str) -> tuple[Revision, ...]:
        with self._moving:
            record = self._catalog.get_model(name)
            return show_revisions(record, self._catalog.list_revisions(name), self._plans.get(name))

    def _events(self, name: str | None, after: int | None, limit: int) -> tuple[Event, ...]:
        return tuple(
            Event(one.id, one.at, one.model, one.kind, one.actor, one.message, one.detail)
            for one in self._catalog.list_events(name, limit, after=after)
        )

    def _reload(self, specs: Sequence[Mapping[str, Any]], actor: str, message: str) -> tuple[ModelStatus, ...]:
        records = self._registrations.reload(specs, actor, message)
        return tuple(self._changed(record) for record in records)

    def _find_plan(self, name: str) -> ModelPlan | None:
        """Of the last round."""
        return self._plans.get(name)

    def _is_ready(self, name: str, number: int) -> bool:
        plan = self._find_plan(name)
        state = plan.find(number) if plan is not None else None
        return state is not None and state.can_answer

    def _foresee(self, verb: Callable[..., ModelRecord], name: str, *args: Any, **by: Any) -> ModelStatus:
        """What would come of a verb that keeps nothing, with the generation that the model has now."""
        asked = by.pop("expected_generation", None)
        while True:
            before = self._catalog.find_model(name)
            generation = asked if before is None or asked is not None else before.generation
            try:
                status = self._status(verb(name, *args, **by, expected_generation=generation))
            except Conflict:
                now = self._catalog.find_model(name)
                if asked is None and now is not None and now.generation != generation:
                    continue  # it was changed while this looked
                raise
            known = before or status  # where there is none the verb has told
            return replace(status, generation=known.generation, updated_at=known.updated_at)

    def _changed(self, record: ModelRecord) -> ModelStatus:
        self._wake.set()
        return self._status(record)

    def _admit_again(self) -> None:
        """Shared revisions that answered under a controller before this one go on, also those out of use by now."""
        kept = list_descriptions()
        for model in self._catalog.list_models():
            history = self._catalog.list_revisions(model.name) if any(kept.get(model.name, ())) else ()
            for revision in history:
                name = application_name(model.name, revision.number)
                is_shared = revision.number in kept[model.name] and revision.content.get("shared")
                if is_shared and (description := find_description(name, revision.digest)) is not None:
                    with contextlib.suppress(InvalidConfig, KeyError, TypeError, ValueError):  # the round tells of it
                        self._pools.admit(RevisionDeployment.from_records(model, revision))
                        self._knowledge.described[name] = description

    # -- folders of versions, in a thread of its own

    def _watch_versions(self) -> None:
        while not self._stopping.wait(self._config.controller.version_poll_interval_s):
            try:
                self._registrations.follow_versions()
            except Exception:
                # The catalog may be away for a moment; the next look begins from scratch.
                logger.exception("looking for versions failed; trying again")

    # -- reconciliation, in a thread of its own

    def _reconcile_forever(self) -> None:
        while not self._stopping.is_set():
            self._round_began = self._clock()
            try:
                is_busy = self._reconcile()
            except Exception:
                # Serve, the catalog or a replica may be away for a moment; the next round begins from scratch.
                logger.exception("reconciling failed; trying again")
                is_busy = False
            interval = _POLL_BUSY_S if is_busy else self._config.controller.reconcile_interval_s
            began = self._clock()
            self._wake.wait(interval)
            self._wake.clear()
            # Whoever wakes it again and again does not have it do nothing else.
            self._stopping.wait(max(0.0, began + _POLL_BUSY_S - self._clock()))

    def _reconcile(self) -> bool:
        """One round; True when something is still on its way."""
        # In this order: an attempt that is asked for comes before the catalog's record that follows it, and what Serve
        # then says is not older than either.
        models = self._catalog.list_models()
        observed = self._observe(models)
        if observed is None:
            return False  # Serve takes everything down; what it has removed is not to be put up again
        self._pools.try_standbys(self._loop)
        self._find_misfits(models, observed)
        self._knowledge.give_up_loading(models, observed, self._clock())
        self._knowledge.describe(models, observed)
        by_model: dict[str, dict[str, Observed]] = defaultdict(dict)
        for name, seen in observed.items():
            if not is_pool(name):
                by_model[name.rpartition("@")[0]][name] = seen
        looks: dict[str, _Look] = {}
        with self._moving:
            for model in models:
                applications_of = by_model.pop(model.name, {})
                looks[model.name] = look = self._look(model, applications_of)
                moved = self._rollouts.advance(model, look.plan) if model.is_rolling_out else model
                if moved is not model:
                    looks[model.name] = self._look(moved, applications_of)
            self._plans = {name: look.plan for name, look in looks.items()}
            changed = [
                deployment
                for look in looks.values()
                for deployment in look.deployments
                if self._deployed.get(deployment.application) != deployment.fingerprint
            ]
            anew = self._admit([deployment for deployment in changed if deployment.is_shared])
            deployments = (deployment for look in looks.values() for deployment in look.deployments)
            self._pools.keep_standbys({one.application for one in deployments if one.has_standby})
            self._publish(models, looks)
        for name in anew:
            clear_description(name)
        self._forget_unused(models, observed)
        deleted = [name for orphans in by_model.values() for name in orphans]
        deleted += [name for look in looks.values() for name in look.plan.delete]
        pools = self._pools.needed()
        deleted += set(filter(is_pool, observed)) - {pool.application for pool in pools}
        targets: list[RevisionDeployment | PoolDeployment] = [
            one for one in changed if not one.is_shared and not self._is_unfit(one)
        ]
        targets += [pool for pool in pools if self._deployed.get(pool.application) != pool.fingerprint]
        self._purge([name for name, look in looks.items() if look.plan.purge])
        self._delete(deleted, observed)
        self._deploy(self._await_environments(targets), observed)
        self._tell_news()
        return bool(targets or deleted) or any(
            not _is_settled(look.plan, may_lack_place=False) or look.plan.serving is None for look in looks.values()
        )

    def _observe(self, models: Sequence[ModelRecord]) -> dict[str, Observed] | None:
        """What there is, after what is wanted once more has been begun again; None while the platform is taken down."""
        again = self._registrations.take_again()
        try:
            applications = read_applications()
            own = applications.get(self._application)
            if own is None or own.is_deleting:
                return None
            observed = self._knowledge.take(applications, models, self._clock())
            for name in self._deployed.keys() - observed.keys():
                del self._deployed[name]
            return self._begin_again(again, observed)
        except Exception:
            self._registrations.put_back(again)
            raise

    def _tell_news(self) -> None:
        try:
            self._news.tell(self._plans)
        except Exception:
            # Nothing waits for it, and the next round tells what this one could not.
            logger.exception("the history cannot be written")

    def _is_unfit(self, deployment: RevisionDeployment) -> bool:
        """It could not be deployed a while ago, and has not changed since."""
        fingerprint, until = self._unfit.get(deployment.application, ("", 0.0))
        return fingerprint == deployment.fingerprint and self._clock() < until

    def _find_misfits(self, models: Sequence[ModelRecord], observed: dict[str, Observed]) -> None:
        """Marks the applications without a replica that no node of this cluster could ever hold."""
        starting = {name for name, seen in observed.items() if seen.wanted and not (seen.running or seen.has_failed)}
        nodes: list[dict[str, Any]] = ray.nodes() if starting else []  # type: ignore[no-untyped-call]
        for model in models if starting else ():
            for revision in model.revisions:
                name = application_name(model.name, revision.number)
                if name not in starting or name in self._pools.residents:
                    continue
                # Whoever deploys it tells.
                with contextlib.suppress(KeyError, TypeError, ValueError, OSError, ModelyardError):
                    needs = self._to_deployment(model, revision).needs()
                    observed[name] = replace(observed[name], misfit=find_misfit(needs, nodes))

    def _look(self, model: ModelRecord, observed: Mapping[str, Observed]) -> _Look:
        """One model's part of a round; a record that cannot be followed fails its own model only."""
        knowledge, find_standby = self._knowledge, self._pools.find_standby
        now = self._clock()
        plan = plan_model(
            model,
            observed,
            knowledge.described,
            knowledge.failures,
            self._waiting,
            find_standby,
            lambda name: knowledge.ran_lately(name, now),
        )
        try:
            if model.problem:
                raise InvalidConfig((model.problem,))
            revisions = (revision for revision in model.revisions if revision.number in plan.deploy)
            deployments = tuple(self._to_deployment(model, one) for one in revisions)
            for deployment in deployments:
                if deployment.has_standby:
                    self._pools.stand_by(deployment)
            limit, pools = self._config.ingress.max_inflight_per_model, self._pools
            route = model_route(model, plan, self._knowledge.described, pools.residents, limit, pools.find_standby)
            return _Look(plan, route, deployments)
        except (InvalidConfig, KeyError, TypeError, ValueError) as exc:
            if model.wanted is Wanted.SERVING:
                plan = failed_plan(model, f"{UNUSABLE}: {exc}; register it again")
            known = self._plans.get(model.name)
            if known is None or known.newest != plan.newest:
                logger.warning('model "%s": %s: %s', model.name, UNUSABLE, exc)
            return _Look(plan, failed_route(model, plan))

    def _admit(self, deployments: Sequence[RevisionDeployment]) -> list[str]:
        """Takes shared revisions into their pools, before anybody is told of this round: pools ask who lives there.

        Returns:
            Those that are to be described anew.
        """
        anew: list[str] = []
        for deployment in deployments:
            if self._pools.admit(deployment):
                self._knowledge.described.pop(deployment.application, None)
                anew.append(deployment.application)
            self._deployed[deployment.application] = deployment.fingerprint
        return anew

    def _to_deployment(self, model: ModelRecord, revision: RevisionRecord) -> RevisionDeployment:
        """From the last round, where nothing has changed: with a thousand models that is most of a round's work."""
        name = application_name(model.name, revision.number)
        state = model.created_at, model.generation, revision.digest
        known = self._read.get(name)
        if known is None or known[0] != state:
            known = self._read[name] = state, RevisionDeployment.from_records(model, revision)
        return known[1]

    def _purge(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                self._catalog.purge_model(name)
            except Conflict:  # wanted again since this round began
                continue
            except (InternalError, Unavailable) as exc:  # the next round tries again
                logger.warning('model "%s" cannot be forgotten: %s', name, exc)
                continue
            self._knowledge.forget(name)
            self._unfit = {one: kept for one, kept in self._unfit.items() if one.rpartition("@")[0] != name}

    def _begin_again(self, again: set[str], observed: Mapping[str, Observed]) -> dict[str, Observed]:
        """Forgets why these applications could not be loaded, and takes down what is left of the last attempt."""
        seen = dict(observed)
        for name in again:
            self._knowledge.try_again(name)
            self._deployed.pop(name, None)
            self._unfit.pop(name, None)
            resident = self._pools.residents.get(name)
            begun = resident.pool if resident is not None else name
            may_end = resident is None or begun in self._knowledge.failures  # a pool that only starts anew goes on
            if begun not in seen or seen[begun].running or not may_end:
                continue
            self._knowledge.begin_attempt(begun)
            self._deployed.pop(begun, None)
            if not seen[begun].is_deleting:
                serve.delete(begun, _blocking=False)
                seen[begun] = replace(seen[begun], has_failed=False, is_deleting=True)
        return seen

    def _forget_unused(self, models: Sequence[ModelRecord], observed: Mapping[str, Observed]) -> None:
        """Forgets what is known of revisions that nobody uses: one that is wanted again is tried again."""
        self._rollouts.forget(set(observed))
        used = {application_name(model.name, one.number) for model in models for one in model.revisions}
        self._read = {name: one for name, one in self._read.items() if name in used}
        self._unfit = {name: one for name, one in self._unfit.items() if name in used}
        self._knowledge.forget_unused(used | observed.keys())

    def _await_environments(
        self, deployments: Sequence[RevisionDeployment | PoolDeployment]
    ) -> list[RevisionDeployment | PoolDeployment]:
        """Those whose Python is there; the others wait for it, or for Serve to take them, or have failed."""
        overlays = {one.application: one.overlay for one in deployments if one.overlay is not None}
        self._waiting, failed = self._builds.look(overlays)
        now = self._clock()
        names = {one.application for one in deployments}
        self._refused = {name: one for name, one in self._refused.items() if name in names}
        self._waiting |= {name: reason for name, (again_at, reason) in self._refused.items() if again_at > now}
        attempts = {one.application: self._knowledge.attempt(one.application, one.digest) for one in deployments}
        for application, reason in failed.items():
            self._knowledge.fail(application, reason, attempts[application])
        return [one for one in deployments if one.application not in self._waiting.keys() | failed.keys()]

    def _deploy(
        self, deployments: Sequence[RevisionDeployment | PoolDeployment], observed: Mapping[str, Observed]
    ) -> None:
        targets: list[serve.RunTarget] = []
        attempts = {one.application: self._knowledge.attempt(one.application, one.digest) for one in deployments}
        for deployment in deployments:
            try:
                seen = observed.get(deployment.application)
                is_described = deployment.application in self._knowledge.described
                has_run = is_described or (is_pool(deployment.application) and seen)
                is_new = seen is None or seen.is_deleting or not has_run
                policies = self._config.autoscaling_policies
                attempt = attempts[deployment.application]
                targets.append(deployment.to_target(self._application, attempt, policies, is_new=is_new))
            except (
                KeyError,
                TypeError,
                ValueError,
                OSError,
                ModelyardError,
            ) as exc:  # the others are deployed all the same
                self._unfit[deployment.application] = deployment.fingerprint, self._clock() + _UNFIT_S
                reason = f"{UNUSABLE}: {exc}; register it again"
                self._knowledge.fail(deployment.application, reason, attempts[deployment.application])
        failed = list_failed() if targets else {}
        for name in failed.keys() & {target.name for target in targets}:
            clear_failure(name)
        names = self._run(targets) if targets else set()
        self._knowledge.tried |= {name: attempts[name] for name in names}
        self._deployed |= {one.application: one.fingerprint for one in deployments if one.application in names}

    def _run(self, targets: Sequence[serve.RunTarget]) -> set[str]:
        """Has Serve run them; the names of those that it takes. One that it refuses keeps no other from it."""
        try:
            _run_many(targets)
            return {target.name for target in targets}
        except Exception as exc:  # noqa: BLE001  # Serve's many ways to say that it is away, or that a target is wrong
            if len(targets) == 1:
                self._refuse(targets[0].name, exc)
                return set()
        return set().union(*(self._run([target]) for target in targets))

    def _refuse(self, application: str, exc: Exception) -> None:
        """It is tried again after a while, and its model says meanwhile why it waits."""
        reason = f"Ray Serve does not take it: {type(exc).__name__}: {exc}"
        if self._refused.get(application, (0.0, ""))[1] != reason:
            logger.warning("%s waits: %s", application, reason, exc_info=exc)
        self._refused[application] = self._clock() + _TRY_AGAIN_S, reason
        self._waiting[application] = reason

    def _delete(self, names: Sequence[str], observed: Mapping[str, Observed]) -> None:
        """Takes applications down, once every ingress has had time to send its requests elsewhere."""
        now, known = self._clock(), self._knowledge
        self._leaving = {name: self._leaving.get(name, now) for name in names}
        for name, since in list(self._leaving.items()):
            seen = observed[name]
            has_loaded = name in known.described and name not in known.failures
            is_asleep = has_loaded and not seen.running
            if is_asleep and seen.wanted and not (seen.place or seen.misfit):
                self._leaving[name] = now  # it wakes, for requests that wait for it
                continue
            # Taken away in the middle of it, an attempt that fails is an error in Serve that nobody asks for any more.
            is_tried_again = name in known.failures and not seen.running and not seen.has_failed
            wait_s = _GIVE_UP_AFTER_S if is_tried_again else _LEAVE_ASLEEP_AFTER_S if is_asleep else _LEAVE_AFTER_S
            if now - since >= wait_s and not seen.is_deleting:
                if name in self._pools.residents:
                    self._pools.release(name)
                else:
                    serve.delete(name, _blocking=False)
                    clear_decision(name)
                self._deployed.pop(name, None)
                clear_description(name)

    # -- what others see

    def _publish(self, models: Sequence[ModelRecord], looks: Mapping[str, _Look]) -> None:
        routes = {name: look.route for name, look in looks.items() if not look.plan.purge}
        # A model of its own comes before a member of another's repository, and that before an adapter; of two such,
        # that of the first model.
        members = [member for route in routes.values() for member in route.published_members()]
        adapters = [adapter for route in routes.values() for adapter in route.published_adapters()]
        routes = {one.name: one for one in reversed([*members, *adapters])} | routes
        is_late = self._clock() - self._began > self._config.controller.place_timeout_s
        is_settled = all(
            _is_settled(looks[model.name].plan, may_lack_place=is_late)
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

    def _status(self, record: ModelRecord) -> ModelStatus:
        status = model_status(record, self._plans.get(record.name), self._knowledge.described)
        if status.rollout is not None:
            plan = self._plans.get(record.name)
            status = replace(status, rollout=self._rollouts.show(record, status.rollout, plan))
        if status.shadow is not None:
            status = replace(status, shadow=self._rollouts.show_shadow(record.name, status.shadow))
        if record.name in self._registrations.left_out and record.owner is not Owner.DECLARED and not status.reason:
            return replace(status, reason=LEFT_OUT)
        return status

    def check_health(self) -> None:
        """Healthy while reconciliation goes on.

        Raises:
            RuntimeError: Its thread has ended, or is stuck.
        """
        if not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("reconciliation has ended")
        since_s = self._clock() - self._round_began
        if since_s > _STUCK_S + self._config.controller.reconcile_interval_s:
            raise RuntimeError(f"reconciliation has been stuck for {since_s:.0f} s")

    def __del__(self) -> None:
        """Serve calls it when the controller stops."""
        if hasattr(self, "_stopping"):
            self._stopping.set()
            self._wake.set()
            self._builds.close()
            self._asking.shutdown(wait=False, cancel_futures=True)
            self._reading.shutdown(wait=False, cancel_futures=True)


def _run_many(targets: Sequence[serve.RunTarget]) -> None:
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _is_settled(plan: ModelPlan, *, may_lack_place: bool) -> bool:
    """Nothing of it is on its way, except that some of it may wait for a node that perhaps never comes."""
    return all(one.state in _SETTLED or (may_lack_place and one.has_no_place) for one in (plan.newest, *plan.others))
