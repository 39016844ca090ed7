# SPDX-License-Identifier: Apache-2.0
"""Where shared models live, as the controller sees it: one Serve application for each framework and runtime.

A shared revision has no application of its own. It is *admitted* to its pool, described by it (which loads it once) and
*released* again; to the plan it looks like one whose application has the pool's replicas. A revision with a
*standby* has one, and a pool that answers for it while it has no replica.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Final

from ray import serve

from modelyard.admin import Pool
from modelyard.config import PoolsConfig, Runtime
from modelyard.environments.overlay import Overlay
from modelyard.errors import ModelLoadError, ModelyardError, Overloaded
from modelyard.serve.applications import (
    AFTER_DRAIN_S,
    CONSTRUCTOR_ATTEMPTS,
    QUIET,
    SERVE_CALLS_PER_REPLICA,
    RevisionDeployment,
    to_actor_options,
    to_autoscaling,
)
from modelyard.serve.failures import DIED_LOADING
from modelyard.serve.handle import DEPLOYMENT_NAME
from modelyard.serve.observed import Observed
from modelyard.serve.pool import PoolReplica
from modelyard.serve.process import DRAIN_TIMEOUT_S
from modelyard.serve.residents import Resident
from modelyard.serve.runtimes import to_runtime_env
from modelyard.signature import Description

logger = logging.getLogger(__name__)

_PREFIX: Final = "pool@"
_TARGET_ONGOING_REQUESTS: Final = 32.0
_ASKED_AT_ONCE: Final = 64
_DEATHS: Final = 2
"""A revision may have been in so many replicas that went away while it was loading."""
_REPORT_TIMEOUT_S: Final = 5.0
_ASK_LOST_AGAIN_S: Final = 10.0
_ASK_STANDBY_AGAIN_S: Final = 60.0


def is_pool(name: str) -> bool:
    """The application is a pool's, by its name; ``pool@1`` is a revision of a model called pool."""
    return name.startswith(_PREFIX) and not name.removeprefix(_PREFIX).isdecimal()


def is_pool_application(name: str, deployments: Iterable[str]) -> bool:
    """The application is a pool of ours, not one that somebody else runs on the same cluster."""
    return is_pool(name) and set(deployments) <= {DEPLOYMENT_NAME}


@dataclass(frozen=True, slots=True)
class PoolDeployment:
    """Everything that decides how one pool runs.

    Attributes:
        application: Name of its Serve application.
        config: What all pools have.
        runtime: What its replicas run in.
        overlay: The packages that have to be there before; None where the platform's are enough.
        digest: Empty: it is no revision.
    """

    application: str
    config: PoolsConfig
    runtime: Runtime
    overlay: Overlay | None
    digest: str = ""

    @classmethod
    def of(cls, revision: RevisionDeployment, config: PoolsConfig) -> PoolDeployment:
        """The pool that a shared revision lives in."""
        kind = str(revision.content["framework"])
        if revision.runtime != Runtime():
            text = json.dumps(revision.runtime.model_dump(mode="json"), sort_keys=True)
            kind = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return cls(_PREFIX + kind, config, revision.runtime, revision.overlay)

    @property
    def fingerprint(self) -> str:
        """Equal exactly when deploying again would change nothing."""
        return hashlib.sha256(self.config.model_dump_json().encode()).hexdigest()

    def to_target(self, platform: str, attempt: str, policies: Mapping[str, str], *, is_new: bool) -> serve.RunTarget:
        """What ``serve.run_many`` takes; see :meth:`RevisionDeployment.to_target`."""
        deployment = serve.deployment(
            name=DEPLOYMENT_NAME,
            max_ongoing_requests=SERVE_CALLS_PER_REPLICA,
            max_constructor_retry_count=CONSTRUCTOR_ATTEMPTS,
            max_surge_percent=100,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=DRAIN_TIMEOUT_S + AFTER_DRAIN_S,
            health_check_period_s=5,
            autoscaling_config=to_autoscaling(
                self.config.autoscaling,
                _TARGET_ONGOING_REQUESTS,
                policies,
                is_new=is_new,
            ),
            ray_actor_options=to_actor_options(
                self.config.resources, to_runtime_env(self.runtime, self.overlay), is_alone=True
            ),
            user_config={"memory_mb": self.config.memory_mb},
            logging_config=QUIET,
        )(PoolReplica)
        # Without a version of its own Serve would restart every replica each time the controller repeats itself.
        bound = deployment.options(version=f"1{attempt}", _internal=True).bind(self.application, platform, attempt)
        return serve.RunTarget(target=bound, name=self.application, route_prefix=None)


@dataclass(eq=False, slots=True)
class _Standby:
    """What a pool answers for while it sleeps.

    Attributes:
        revision: As it was when this was made.
        resident: As the pool knows it.
        is_ready: The pool's replicas have shown that they can load it.
        asked: One of them is asked to.
        again_at: When it is to be asked again, in seconds.
    """

    revision: RevisionDeployment
    resident: Resident
    is_ready: bool = False
    asked: Future[Description | ModelyardError] | None = None
    again_at: float = 0.0

    def look(self, now: float) -> None:
        """Takes what the pool has answered."""
        asked, self.asked = self.asked, None
        if asked is None or asked.cancelled():
            return
        failure = asked.exception() or asked.result()
        self.is_ready = isinstance(failure, Description)
        if not self.is_ready:
            logger.warning("%s has no standby: %s", self.resident.application, failure)
            self.again_at = now + _ASK_STANDBY_AGAIN_S


class Pools:
    """The shared revisions that are admitted, and their pools.

    Args:
        config: What all pools have.
        platform: The application of the platform.
    """

    def __init__(self, config: PoolsConfig, platform: str) -> None:
        self._config = config
        self._platform = platform
        self._residents: dict[str, Resident] = {}
        self._standbys: dict[str, _Standby] = {}
        self._by_key: dict[str, Resident] = {}
        self._running: set[str] = set()
        self._deployments: dict[str, PoolDeployment] = {}
        self._blamed: dict[str, str] = {}
        self._died: Counter[str] = Counter()
        self._lost: dict[str, float] = {}
        self._asked: dict[str, tuple[Resident, Future[Description | ModelyardError]]] = {}

    @property
    def residents(self) -> Mapping[str, Resident]:
        """Those admitted, by the name that an application of their own would have."""
        return self._residents

    def find(self, known: Mapping[str, str]) -> dict[str, Resident | None]:
        """What has changed of what a replica knows; from any thread.

        Args:
            known: Fingerprints by key, as far as it has any.

        Returns:
            The new state of those that have changed; None for those that are no more.
        """
        found = {key: self._by_key.get(key) for key in known}
        return {key: one for key, one in found.items() if one is None or one.fingerprint != known[key]}

    def lose(self, failed: Collection[str], described: Collection[str]) -> None:
        """Models that were loaded before cannot be loaded any more, says a pool's replica; from any thread.

        They are asked for again and again from now on, until they can be, or are released.

        Args:
            failed: Keys of those that cannot be loaded.
            described: Applications that have been loaded before.
        """
        for key in failed:
            resident = self._by_key.get(key)
            name = resident.application if resident is not None else ""
            if name in described and name in self._residents:
                self._lost.setdefault(name, 0.0)

    def take_lost(self) -> set[str]:
        """Those that are to be asked for again now."""
        now = time.monotonic()
        due = {name for name, at in list(self._lost.items()) if at <= now}
        self._lost |= dict.fromkeys(due, now + _ASK_LOST_AGAIN_S)
        return due

    def admit(self, revision: RevisionDeployment) -> bool:
        """Takes a revision in, or its new limits; whether it is another one of the same name than before."""
        resident = self._to_resident(revision)
        old = self._residents.get(revision.application)
        self._residents[revision.application] = self._by_key[resident.key] = resident
        if old is None or old.key == resident.key:
            return False
        self._by_key.pop(old.key, None)
        self._died.pop(revision.application, None)
        return True

    def release(self, application: str) -> None:
        """Nobody asks for this revision any more; its pool forgets it."""
        resident = self._residents.pop(application, None)
        if resident is not None:
            self._by_key.pop(resident.key, None)
            self._died.pop(application, None)
            self._lost.pop(application, None)

    def _to_resident(self, revision: RevisionDeployment) -> Resident:
        """The revision as its pool knows it; the pool is there from now on."""
        pool = PoolDeployment.of(revision, self._config)
        self._deployments[pool.application] = pool
        return Resident(
            key=f"{revision.application}:{revision.digest.removeprefix('sha256:')[:16]}",
            pool=pool.application,
            application=revision.application,
            spec=revision.to_revision(self._platform),
            batching=revision.batching,
            load_timeout_s=revision.spec.limits.load_timeout_s,
        )

    def stand_by(self, revision: RevisionDeployment) -> None:
        """A pool is to answer for this revision, which has an application of its own, while that has no replica."""
        known = self._standbys.get(revision.application)
        if known is not None and known.revision is revision:
            return
        resident = self._to_resident(revision)
        is_ready = known is not None and known.resident.key == resident.key and known.is_ready
        if known is not None and known.resident.key != resident.key:
            self._by_key.pop(known.resident.key, None)
        self._standbys[revision.application] = _Standby(revision, resident, is_ready)
        self._by_key[resident.key] = resident

    def keep_standbys(self, applications: Collection[str]) -> None:
        """Ends all standbys but those of these applications."""
        for application in self._standbys.keys() - applications:
            resident = self._standbys.pop(application).resident
            if application not in self._residents:  # else it is the resident's, of the same revision
                self._by_key.pop(resident.key, None)

    def try_standbys(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has pools load what they are to stand by for, once: so they can, and have the library when it counts.

        Args:
            loop: Where Serve's handles work.
        """
        now = time.monotonic()
        for one in self._standbys.values():
            if one.resident.pool not in self._running:
                one.is_ready, one.asked, one.again_at = False, None, 0.0
            elif one.asked is None and not one.is_ready and one.again_at <= now:
                one.asked = asyncio.run_coroutine_threadsafe(_ask(one.resident), loop)
            elif one.asked is not None and one.asked.done():
                one.look(now)

    def find_standby(self, application: str) -> Resident | None:
        """What answers for an application of its own while that has no replica; None where nothing can now."""
        known = self._standbys.get(application)
        return known.resident if known is not None and known.is_ready else None

    async def report(self) -> tuple[Pool, ...]:
        """What the pools hold and have done, by name; of those whose replicas answer soon."""
        lived = Counter(resident.pool for resident in list(self._residents.values()))
        lived += Counter(one.resident.pool for one in list(self._standbys.values()))
        return tuple(await asyncio.gather(*(_report(name, count) for name, count in sorted(lived.items()))))

    def needed(self) -> list[PoolDeployment]:
        """The pools that somebody lives in."""
        used = {resident.pool for resident in self._residents.values()}
        used |= {one.resident.pool for one in self._standbys.values()}
        return [deployment for name, deployment in sorted(self._deployments.items()) if name in used]

    def observe(self, observed: Mapping[str, Observed]) -> dict[str, Observed]:
        """What there is to say of those admitted, from the applications that there are."""
        self._running = {name for name, one in observed.items() if is_pool(name) and one.running}
        pools = {name: replace(one, is_deleting=False, has_failed=False) for name, one in observed.items()}
        return {name: pools.get(one.pool, Observed(wanted=1)) for name, one in self._residents.items()}

    def blame(self, failures: dict[str, str], observed: Mapping[str, Observed]) -> None:
        """Fails the revisions of pools that cannot be started, and takes that back for those of pools that run.

        Args:
            failures: Why applications cannot be loaded, pools among them; changed in place.
            observed: The applications that there are.
        """
        for name, pool in list(self._blamed.items()):
            if (seen := observed.get(pool)) is not None and seen.running:
                failures.pop(name, None)
                del self._blamed[name]
        for name, resident in self._residents.items():
            if resident.pool in failures:
                failures.setdefault(name, f"its pool cannot be started: {failures[resident.pool]}")
                self._blamed[name] = resident.pool

    def take_descriptions(self) -> dict[str, Description | str]:
        """What pools have told since the last call: what a revision takes and gives, or why it cannot be loaded."""
        told: dict[str, Description | str] = {}
        for name, (resident, future) in list(self._asked.items()):
            if not future.done():
                continue
            del self._asked[name]
            if self._residents.get(name) != resident or future.cancelled():
                continue  # released since
            if future.exception() is not None:  # the replica has gone, perhaps of this very model
                self._died[name] += 1
                if self._died[name] > _DEATHS:
                    told[name] = DIED_LOADING
                    del self._died[name]
                continue
            answer = future.result()
            self._died.pop(name, None)
            if isinstance(answer, Description):
                told[name] = answer
                self._lost.pop(name, None)
            elif not isinstance(answer, Overloaded):
                told[name] = answer.reason if isinstance(answer, ModelLoadError) else str(answer)
        return told

    def ask(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        """Asks for a revision's description, unless that is on its way or enough others are.

        Those that were asked when a replica went away are asked again one by one, before any others: whose load it is
        that ends the process must not take the others with it again and again.

        Args:
            name: Of one that is admitted.
            loop: Where Serve's handles work.
        """
        resident = self._residents.get(name)
        if resident is None:  # released since
            self._lost.pop(name, None)
            return
        if name in self._asked or len(self._asked) >= (1 if self._died else _ASKED_AT_ONCE):
            return
        if self._died and name not in self._died:
            return
        self._asked[name] = resident, asyncio.run_coroutine_threadsafe(_ask(resident), loop)


async def _report(pool: str, revisions: int) -> Pool:
    try:
        handle = serve.get_deployment_handle(DEPLOYMENT_NAME, app_name=pool)
        answers = await handle.broadcast("report").results_async(timeout_s=_REPORT_TIMEOUT_S)
    except Exception as exc:  # noqa: BLE001  # Serve's many ways to say that a replica is gone or busy
        logger.info("%s does not report: %s", pool, type(exc).__name__)
        answers = []
    return Pool(pool, revisions, tuple(sorted(answers, key=lambda one: one.name)))


async def _ask(resident: Resident) -> Description | ModelyardError:
    handle = serve.get_deployment_handle(DEPLOYMENT_NAME, app_name=resident.pool)
    multiplexed = handle.options(multiplexed_model_id=resident.key)
    answer: Description | ModelyardError = await multiplexed.describe.remote(resident)
    return answer
