# SPDX-License-Identifier: Apache-2.0
"""What the controller knows of applications beyond Serve's own words: what they serve, and why some cannot.

Nothing of it is lost with the controller: replicas tell it again, and Ray's key-value store keeps what sleeps.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Final

from ray import serve

from modelyard.catalog import ModelRecord
from modelyard.serve.applications import application_name, load_timeout_s
from modelyard.serve.counts import clear_counts
from modelyard.serve.descriptions import clear_description, find_description, keep_description
from modelyard.serve.failures import (
    DIED_LOADING,
    clear_failure,
    clear_failures,
    find_failure,
    find_setup_failure,
    forget_attempt,
    keep_attempt,
    list_attempts,
    list_failed,
)
from modelyard.serve.handle import DEPLOYMENT_NAME
from modelyard.serve.observed import Observed, is_revision_application
from modelyard.serve.pools import Pools, is_pool, is_pool_application
from modelyard.signature import Description

logger = logging.getLogger(__name__)

_DESCRIBE_TIMEOUT_S: Final = 5.0
_ANSWER_S: Final = 0.2
"""What a round waits for those that describe themselves for the first time: most do within milliseconds."""
_LATELY_S: Final = 30.0
"""How long new requests wait for the next replica where the last one has ended: how it does nobody knows yet."""


class Knowledge:
    """Of all applications, by name; shared revisions have the names that applications of their own would have.

    Args:
        pools: Where shared revisions live.
        loop: Where Serve's handles work.

    Attributes:
        described: What they take and give, as far as they have told.
        failures: Why they cannot be loaded.
        tried: The attempts that Serve has been told of last, by this controller.
    """

    def __init__(self, pools: Pools, loop: asyncio.AbstractEventLoop) -> None:
        self.described: dict[str, Description] = {}
        self.failures: dict[str, str] = {}
        self.tried: dict[str, str] = {}
        self._pools = pools
        self._loop = loop
        self._attempts = list_attempts()
        self._failed: dict[str, str] = {}
        self._loading: dict[tuple[str, str], float] = {}
        self._ran: dict[str, float] = {}
        self._asked: dict[str, tuple[float, str, Future[Description]]] = {}
        self._confirmed: dict[str, str] = {}

    def take(
        self, applications: Mapping[str, Observed], models: Sequence[ModelRecord], now: float = 0.0
    ) -> dict[str, Observed]:
        """Learns from what Serve says.

        Args:
            applications: All that run, also other people's.
            models: With the revisions that are in use.
            now: In seconds, on any clock.

        Returns:
            Those of revisions and pools, and what there is to say of each shared revision.
        """
        observed = {
            name: seen
            for name, seen in applications.items()
            if is_revision_application(name, seen.deployments) or is_pool_application(name, seen.deployments)
        }
        observed |= self._pools.observe(observed)
        for name in self.described.keys() - observed.keys():
            del self.described[name]
            clear_description(name)
        self._confirmed = {name: digest for name, digest in self._confirmed.items() if name in observed}
        wanted = self._list_wanted(observed, models)
        self._forget_outdated(wanted)
        for name in wanted.keys() & observed.keys():
            if observed[name].has_failed and self.tried.get(name, wanted[name]) != wanted[name]:
                observed[name] = replace(observed[name], has_failed=False)  # what is wanted Serve has not tried yet
        self._learn_failures(observed, wanted)
        self._ran = {
            name: now if seen.running else self._ran.get(name, -_LATELY_S)
            for name, seen in observed.items()
            if not seen.is_deleting
        }
        self._pools.blame(self.failures, observed)
        return observed

    def _list_wanted(self, observed: Collection[str], models: Sequence[ModelRecord]) -> dict[str, str]:
        """The attempts that are wanted of the applications that are in use, and of pools."""
        digests = _digests(models) | {name: "" for name in observed if is_pool(name)}
        return {name: self.attempt(name, digest) for name, digest in digests.items()}

    def _forget_outdated(self, wanted: Mapping[str, str]) -> None:
        """A reason is one of its attempt: it says nothing of the next one."""
        for name, attempt in list(self._failed.items()):
            if wanted.get(name, attempt) != attempt:
                self._forgive(name)

    def _learn_failures(self, observed: Mapping[str, Observed], wanted: Mapping[str, str]) -> None:
        alone = {name: seen for name, seen in observed.items() if name not in self._pools.residents}  # pools tell
        for name in [name for name, seen in alone.items() if seen.running]:
            self._forgive(name)
        open_ = {name: seen for name, seen in alone.items() if not seen.running and name not in self.failures}
        failed = list_failed() if open_ else {}
        for name, seen in open_.items():
            ours = wanted.get(name) or self.tried.get(name, "")
            reasons = (find_failure(name, one) for one in failed.get(name, ()) if ours in ("", one))
            given_up = (find_setup_failure(seen.message) or DIED_LOADING) if seen.has_failed else None
            reason = next(filter(None, reasons), given_up)
            if reason is not None:
                self.fail(name, reason, ours)

    def attempt(self, application: str, digest: str) -> str:
        """Identity of what Serve is to try: replicas report under it why they cannot load.

        Serve, told to delete an application and to deploy it within one turn of its loop, sees what is new only by it.

        Args:
            application: Its name.
            digest: Of what they load.
        """
        return f"{digest}/{self._attempts.get(application, '')}"

    def begin_attempt(self, application: str) -> None:
        """Another one at the same: what replicas of the one before still report is of no interest."""
        self._forgive(application)
        self._attempts[application] = uuid.uuid4().hex
        keep_attempt(application, self._attempts[application])

    def ran_lately(self, application: str, now: float) -> bool:
        """It had a replica a moment ago."""
        return now - self._ran.get(application, -_LATELY_S) < _LATELY_S

    def fail(self, application: str, reason: str, attempt: str = "") -> None:
        """It cannot be loaded.

        Args:
            application: Its name.
            reason: Why.
            attempt: Which has failed; empty where every one would.
        """
        logger.warning("%s cannot be loaded: %s", application, reason)
        self._forgive(application)
        self.failures[application] = reason
        if attempt:
            self._failed[application] = attempt

    def give_up_loading(self, models: Sequence[ModelRecord], observed: Mapping[str, Observed], now: float) -> None:
        """A revision whose replicas have had their place for too long and still do not run has failed.

        Args:
            models: With how long they may take.
            observed: The applications that there are.
            now: In seconds, on any clock.
        """
        attempts = self._list_wanted(observed, models)
        self._loading = {
            (name, attempts.get(name, "")): self._loading.get((name, attempts.get(name, "")), now)
            for name, seen in observed.items()
            if seen.wanted
            and name not in self._pools.residents
            and not is_pool(name)
            and name not in self.failures
            and not (seen.running or seen.has_failed or seen.is_deleting or seen.place or seen.misfit)
        }
        limits = {model.name: load_timeout_s(model) for model in models}
        for (name, attempt), since in self._loading.items():
            limit_s = limits.get(name.rpartition("@")[0], now)
            if now - since > limit_s:
                self.fail(name, f"it did not load within {limit_s:g} s (limits.load_timeout_s)", attempt)

    def describe(self, models: Sequence[ModelRecord], observed: Mapping[str, Observed]) -> None:
        """Asks the applications that have begun to run what they serve, and again those where that may change."""
        digests = _digests(models)
        for name, digest in digests.items():
            seen = observed.get(name)
            # Of a controller before this one: it holds until a replica tells, where there is one to ask.
            is_new = seen is not None and name not in self.described and name not in self._pools.residents
            if is_new and (kept := find_description(name, digest)) is not None:
                self.described[name] = kept
        known = {
            name
            for name, description in self.described.items()
            if not description.may_change and self._confirmed.get(name) == digests.get(name, "")
        }
        open_ = [name for name, seen in observed.items() if seen.running and name not in known and not seen.is_deleting]
        self._describe_residents([name for name in open_ if name in self._pools.residents], digests)
        now = time.monotonic()
        for name in open_:
            if name not in self._asked and name not in self._pools.residents and not is_pool(name):
                asked = asyncio.run_coroutine_threadsafe(_ask_description(name), self._loop)
                self._asked[name] = now, digests.get(name, ""), asked
        is_first = not self._asked.keys() <= self.described.keys()
        wait([future for _, _, future in self._asked.values()], _ANSWER_S if is_first else 0.0)
        for name, (since, digest, future) in list(self._asked.items()):
            is_open = name in open_ and digests.get(name, "") == digest
            if is_open and not future.done() and now - since < _DESCRIBE_TIMEOUT_S:
                continue  # whoever answers slowly holds up nobody else: another round takes it
            del self._asked[name]
            if is_open:
                self._take_description(name, future, digest)
            else:
                future.cancel()

    def _take_description(self, name: str, future: Future[Description], digest: str) -> None:
        try:
            description = future.result(0.0)
        except Exception as exc:  # noqa: BLE001  # the replica may have gone; the next round asks again
            future.cancel()
            logger.info("%s does not describe itself yet: %s", name, type(exc).__name__)
            return
        self._confirmed[name] = digest
        if self.described.get(name) != description:
            self.described[name] = description
            keep_description(name, digest, description)

    def _describe_residents(self, names: Sequence[str], digests: Mapping[str, str]) -> None:
        """The same for shared revisions, which their pools load for this."""
        for name, told in self._pools.take_descriptions().items():
            if isinstance(told, Description):
                self.described[name] = told
                self.failures.pop(name, None)
                keep_description(name, digests.get(name, ""), told)
            else:
                if self.failures.get(name) != told:
                    self.fail(name, told)
                if self.described.pop(name, None) is not None:
                    clear_description(name)
        new = [name for name in names if name not in self.described and name not in self.failures]
        for name in [*new, *self._pools.take_lost()]:
            self._pools.ask(name, self._loop)

    def try_again(self, application: str) -> None:
        """Forgets why it could not be loaded."""
        self._forgive(application)
        clear_failure(application)

    def _forgive(self, application: str) -> None:
        self.failures.pop(application, None)
        self._failed.pop(application, None)

    def forget_unused(self, used: Collection[str]) -> None:
        """Forgets why others than these could not be loaded: one that is wanted again is tried again."""
        self.tried = {name: attempt for name, attempt in self.tried.items() if name in used}
        for name in self._attempts.keys() - used:
            forget_attempt(name)
            del self._attempts[name]
        self._forget_failures(lambda name: name not in used)

    def forget(self, model: str) -> None:
        """The next model of that name begins at revision 1 again, and is to inherit neither failures nor counts."""
        clear_counts(model)
        clear_failures(model)
        self._forget_failures(lambda name: name.rpartition("@")[0] == model)

    def _forget_failures(self, is_old: Callable[[str], bool]) -> None:
        for application in [name for name in self.failures if is_old(name)]:
            self.try_again(application)


def _digests(models: Sequence[ModelRecord]) -> dict[str, str]:
    """Of the revisions in use, by application."""
    return {application_name(model.name, one.number): one.digest for model in models for one in model.revisions}


async def _ask_description(application: str) -> Description:
    """What a replica of this application says of itself; Serve's handles want an event loop."""
    handle = serve.get_deployment_handle(DEPLOYMENT_NAME, app_name=application)
    description: Description = await handle.describe.remote()
    return description
