# SPDX-License-Identifier: Apache-2.0
"""``Platform``: the same verbs for code that cannot await, each run by a thread with an event loop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self, Unpack, overload

from modelyard.admin import AdminTransport, Event, ModelStatus, Plan, Pool, Revision
from modelyard.client.aio import AsyncPlatform, Progress, Registering, RegisteringSpec, Weights, open_transport
from modelyard.client.loop import LoopThread
from modelyard.client.waiting import EventWatch, GoneWait, ReadyWait, RolloutWait, UnloadWait, Wait, made_revision
from modelyard.config import ModelSpec
from modelyard.inference import InferenceRequest, InferenceResponse


class Platform:
    """The platform, for scripts and notebooks; :attr:`aio` is its async twin.

    Args:
        open_transport: Makes a way to reach it, one for each event loop; :meth:`connect` chooses one.
        actor: Who changes models, for their history; see :meth:`connect`.
    """

    def __init__(self, open_transport: Callable[[], AdminTransport], *, actor: str | None = None) -> None:
        self._open_transport = open_transport
        self._actor = actor
        self._transport = open_transport()
        self._platform = AsyncPlatform(self._transport, actor=actor)
        self._loop = LoopThread()
        self._aio: AsyncPlatform | None = None

    @classmethod
    def connect(
        cls, url: str | None = None, *, token: str | None = None, timeout_s: float = 30.0, actor: str | None = None
    ) -> Self:
        """A client; nothing is sent yet.

        An address, given or in ``MODELYARD_URL``, wins. Without one, a process that is connected to a Ray cluster
        talks to the platform in it; any other to ``http://127.0.0.1:8000``.

        Args:
            url: Address of the platform.
            token: Bearer token; without one, ``MODELYARD_TOKEN``.
            timeout_s: How long one call may take; to register or load a model, for which the platform reads its
                artifact, up to 600 s in any case.
            actor: Who changes models, for their history; without one, ``MODELYARD_ACTOR``, or the user and the machine
                that this runs on, ``me@laptop``.

        Raises:
            InvalidConfig: The URL is not an HTTP address.
        """
        return cls(partial(open_transport, url, token=token, timeout_s=timeout_s), actor=actor)

    @property
    def aio(self) -> AsyncPlatform:
        """The same verbs as coroutines, with connections of their own; close them in the loop that used them."""
        if self._aio is None:
            self._aio = AsyncPlatform(self._open_transport(), actor=self._actor)
        return self._aio

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections and ends the thread behind this object."""
        self._loop.run(self._platform.close())
        self._loop.close()

    @overload
    def register(
        self, name: str, *, framework: str, dry_run: Literal[False] = ..., **more: Unpack[Registering]
    ) -> ModelStatus: ...
    @overload
    def register(self, name: str, *, framework: str, dry_run: Literal[True], **more: Unpack[Registering]) -> Plan: ...
    @overload
    def register(
        self, name: str, *, framework: str, dry_run: bool, **more: Unpack[Registering]
    ) -> ModelStatus | Plan: ...
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
            rollout: How a new revision gets its traffic; keys as in the configuration file.
            warmup: Requests that each replica answers before it gets others, as bodies of v1 ``:predict``.
            sticky: Where requests say who they belong to, for example ``header:x-user-id``.
            shared: It lives in a pool with others, loaded when it is asked for.
            description: What the model is for.
            message: Why, for the history.
            wait: Wait until the revision that this makes is ready, whichever answers meanwhile. Where its rollout has
                steps or gates it may have no traffic by then.
            timeout_s: How long to wait.
            on_progress: Called, while waiting, with the first status and with each that differs from the last; here and
                in the other verbs by the caller's own thread, so it may use this object.
            expected_generation: Only if the model is still at this ``generation``; 0 for one that must be new.
            dry_run: Check all of it, and answer what would be done; nothing is changed.

        Raises:
            InvalidConfig: Something in it is wrong; ``problems`` has a sentence for each key.
            Conflict: The name belongs to a model of the configuration file, or the model is at another generation.
            ModelNotReady: The revision was waited for, and failed or did not become ready in time.
            RolledBack: The revision was waited for, and its rollout was taken back.
        """
        made = self._loop.run(
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
                rollout=rollout,
                warmup=warmup,
                sticky=sticky,
                shared=shared,
                description=description,
                message=message,
                expected_generation=expected_generation,
                dry_run=dry_run,
            )
        )
        return self._wait_made(made, timeout_s, on_progress) if wait and isinstance(made, ModelStatus) else made

    @overload
    def register_spec(
        self, spec: ModelSpec, *, dry_run: Literal[False] = ..., **more: Unpack[RegisteringSpec]
    ) -> ModelStatus: ...
    @overload
    def register_spec(self, spec: ModelSpec, *, dry_run: Literal[True], **more: Unpack[RegisteringSpec]) -> Plan: ...
    @overload
    def register_spec(
        self, spec: ModelSpec, *, dry_run: bool, **more: Unpack[RegisteringSpec]
    ) -> ModelStatus | Plan: ...
    def register_spec(
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
        """Like :meth:`register`, with the whole description in one object."""
        made = self._loop.run(
            self._platform.register_spec(
                spec, message=message, expected_generation=expected_generation, dry_run=dry_run
            )
        )
        return self._wait_made(made, timeout_s, on_progress) if wait and isinstance(made, ModelStatus) else made

    def _wait_made(self, status: ModelStatus, timeout_s: float, on_progress: Progress | None) -> ModelStatus:
        """Like the twin's."""
        return self._follow(ReadyWait(self._transport, status, timeout_s, made_revision(status)), on_progress)

    def _follow(self, waiting: Wait, on_progress: Progress | None) -> ModelStatus:
        """Like the twin's, but what is called may use this object: it runs in the caller's thread."""
        found: ModelStatus | None = waiting.status
        while found is not None:
            if on_progress is not None:
                on_progress(found)
            found = self._loop.run(waiting.next())
        return waiting.status

    def export(self, names: Sequence[str] = (), *, all_owners: bool = False) -> tuple[dict[str, Any], ...]:
        """Models as the configuration file would have them, without what is a default; see :meth:`import_`.

        Environment variables of their ``runtime`` are in it as they are, secrets too.

        Args:
            names: These, whoever owns them; without any, all that were registered.
            all_owners: Without names, all others too, for example those of the configuration file.

        Raises:
            ModelNotFound: There is none of a name.
            Conflict: One is being removed.
            ModelLoadError: The entry of one cannot be used.
        """
        return self._loop.run(self._platform.export(names, all_owners=all_owners))

    def import_(
        self, specs: Iterable[Mapping[str, Any] | ModelSpec], *, message: str = "", dry_run: bool = False
    ) -> tuple[Plan, ...]:
        """Registers each of these models; where one of them is wrong, none.

        Args:
            specs: What :meth:`export` gives, or models as in the configuration file.
            message: Why, for the history.
            dry_run: Only check them.

        Returns:
            What is done with each of them, or would be.

        Raises:
            InvalidConfig: Some are wrong or belong to another owner; ``problems`` has a sentence for each key,
                ``models[2].uri: …``.
            Conflict: One was changed by somebody else meanwhile; those before it are registered.
        """
        return self._loop.run(self._platform.import_(specs, message=message, dry_run=dry_run))

    def unregister(
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
        """Takes a registered model away; it answers what it has accepted first.

        Args:
            name: The model.
            message: Why, for the history.
            wait: Wait until it is gone.
            timeout_s: How long to wait.
            on_progress: Called, while waiting, with the first status and with each that differs from the last.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Returns:
            Its last status. Where it was waited for and is ``removing`` it is gone; else it was registered again.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It belongs to the configuration file, or is at another generation.
            ModelNotReady: It was waited for and is still being removed.
        """
        status = self._loop.run(
            self._platform.unregister(name, message=message, expected_generation=expected_generation, dry_run=dry_run)
        )
        return (
            self._follow(GoneWait(self._transport, status, timeout_s), on_progress) if wait and not dry_run else status
        )

    def load(
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
        """Runs a model again that was unloaded or has failed, and reads its artifact again.

        Changed contents make the next revision; a model that runs with these very contents is left as it is. It works
        for models of the configuration file too.

        Args:
            name: The model.
            message: Why, for the history.
            wait: Wait until the revision that is to run is ready, whichever answers meanwhile; see :meth:`register`.
            timeout_s: How long to wait.
            on_progress: Called, while waiting, with the first status and with each that differs from the last.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            ModelNotFound: There is none of that name.
            ModelLoadError: Its artifact is not there any more; what ran goes on running.
            Conflict: It is being removed, or at another generation.
            ModelNotReady: The revision was waited for, and failed or did not become ready in time.
            RolledBack: The revision was waited for, and its rollout was taken back.
        """
        status = self._loop.run(
            self._platform.load(name, message=message, expected_generation=expected_generation, dry_run=dry_run)
        )
        return self._wait_made(status, timeout_s, on_progress) if wait and not dry_run else status

    def unload(
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
        """Stops all of a model that runs; it answers what it has accepted first.

        The platform keeps the model, over restarts too, until it is loaded (:meth:`load`) or registered again. It
        works for models of the configuration file too.

        Args:
            name: The model.
            message: Why, for the history.
            wait: Wait until nothing of it runs.
            timeout_s: How long to wait.
            on_progress: Called, while waiting, with the first status and with each that differs from the last.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It is being removed, or at another generation.
            ModelNotReady: It was waited for and is still being unloaded.
        """
        status = self._loop.run(
            self._platform.unload(name, message=message, expected_generation=expected_generation, dry_run=dry_run)
        )
        return (
            self._follow(UnloadWait(self._transport, status, timeout_s), on_progress)
            if wait and not dry_run
            else status
        )

    def set_traffic(
        self,
        name: str,
        weights: Weights | None = None,
        *,
        shadow: int | str | Mapping[str, Any] | EllipsisType | None = ...,
        message: str = "",
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """Sends a model's traffic elsewhere, at once.

        Args:
            name: The model.
            weights: Percent by revision (number or label): whole tenths, 100 in sum. A revision with 0 runs dark, for
                those who ask for it. None leaves them as they are.
            shadow: The revision that gets copies of the requests, or an object with ``revision``, ``percent`` and
                ``tolerance``; None ends it. Left out, it stays as it is.
            message: Why, for the history.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            InvalidConfig: The weights are none.
            ModelNotFound: There is no such model or revision.
            Conflict: A rollout is on its way, the model is not running, or it is at another generation.
        """
        return self._loop.run(
            self._platform.set_traffic(
                name, weights, shadow=shadow, message=message, expected_generation=expected_generation, dry_run=dry_run
            )
        )

    def set_label(
        self,
        name: str,
        label: str,
        revision: int | str,
        *,
        message: str = "",
        expected_generation: int | None = None,
        dry_run: bool = False,
    ) -> ModelStatus:
        """Points a label of your own at a revision, which then runs also without traffic.

        Args:
            name: The model.
            label: The label.
            revision: The revision, by number or another label.
            message: Why, for the history.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            InvalidConfig: It is no label of your own.
            ModelNotFound: There is no such model or revision.
            Conflict: The model is not running, its labels are its version policy's, or it is at another generation.
        """
        return self._loop.run(
            self._platform.set_label(
                name, label, revision, message=message, expected_generation=expected_generation, dry_run=dry_run
            )
        )

    def remove_label(
        self, name: str, label: str, *, message: str = "", expected_generation: int | None = None, dry_run: bool = False
    ) -> ModelStatus:
        """Takes a label of your own away; a revision that has neither traffic nor another one ends.

        Args:
            name: The model.
            label: The label.
            message: Why, for the history.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            ModelNotFound: There is no such model or label.
            Conflict: The model is not running, its labels are its version policy's, or it is at another generation.
        """
        return self._loop.run(
            self._platform.remove_label(
                name, label, message=message, expected_generation=expected_generation, dry_run=dry_run
            )
        )

    def rollout(
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
        """Brings a revision on its way to all traffic; what is left out is as in the model's ``rollout``.

        Args:
            name: The model.
            to: The revision, by number or label.
            steps: Percent of the traffic, one after the other.
            interval_s: Seconds each step takes at least.
            min_requests: Requests each step has to see before its gates can be said to hold.
            gates: What has to hold, for example ``{"error_rate": 0.01}``; where one does not, it is rolled back. Those
                that are left out are as in the model's too; None takes one away.
            message: Why, for the history.
            wait: Wait until it has ended, or has come to where it stays: dark and ready, or at a last step below 100
                that has had its time and its requests.
            timeout_s: How long to wait.
            on_progress: Called, while waiting, with the first status and with each that differs from the last.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            InvalidConfig: The plan is none.
            ModelNotFound: There is no such model or revision.
            Conflict: The revision has all traffic already, the model is not running or at another generation, or, while
                it was waited for, something else has taken its place.
            RolledBack: It was waited for and has been rolled back.
            DeadlineExceeded: It was waited for and goes on.
        """
        status = self._loop.run(
            self._platform.rollout(
                name,
                to,
                steps=steps,
                interval_s=interval_s,
                min_requests=min_requests,
                gates=gates,
                message=message,
                expected_generation=expected_generation,
                dry_run=dry_run,
            )
        )
        return (
            self._follow(RolloutWait(self._transport, status, timeout_s), on_progress)
            if wait and not dry_run
            else status
        )

    def promote(
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
        """Gives a revision all traffic as soon as it is ready, without further steps and gates.

        Args:
            name: The model.
            revision: The revision, by number or label; None for that of the rollout on its way.
            message: Why, for the history.
            wait: Wait until it has all traffic.
            timeout_s: How long to wait.
            on_progress: Called, while waiting, with the first status and with each that differs from the last.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: There is nothing to promote, the model is not running, or it is at another generation.
            RolledBack: It was waited for and has been rolled back.
            DeadlineExceeded: It was waited for and is not ready yet.
        """
        status = self._loop.run(
            self._platform.promote(
                name, revision, message=message, expected_generation=expected_generation, dry_run=dry_run
            )
        )
        return (
            self._follow(RolloutWait(self._transport, status, timeout_s), on_progress)
            if wait and not dry_run
            else status
        )

    def rollback(
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
        """Takes the rollout on its way back; without one, returns to the revision that had all traffic before.

        Args:
            name: The model.
            revision: A revision to return to in any case, by number or label.
            message: Why, for the history.
            wait: Wait until the traffic is there.
            timeout_s: How long to wait.
            on_progress: Called, while waiting, with the first status and with each that differs from the last.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: There is nothing to return to, the model is not running, or it is at another generation.
            RolledBack: It was waited for, and has been taken back itself.
            DeadlineExceeded: It was waited for and is not ready yet.
        """
        status = self._loop.run(
            self._platform.rollback(
                name, revision, message=message, expected_generation=expected_generation, dry_run=dry_run
            )
        )
        return (
            self._follow(RolloutWait(self._transport, status, timeout_s), on_progress)
            if wait and not dry_run
            else status
        )

    def abort(
        self, name: str, *, message: str = "", expected_generation: int | None = None, dry_run: bool = False
    ) -> ModelStatus:
        """Takes the rollout on its way back: its revision loses its traffic, and all others have what they had before.

        Without a rollout on its way nothing is changed, unlike by :meth:`rollback`.

        Args:
            name: The model.
            message: Why, for the history.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It has no rollout on its way, or is at another generation.
        """
        return self._loop.run(
            self._platform.abort(name, message=message, expected_generation=expected_generation, dry_run=dry_run)
        )

    def pause(
        self, name: str, *, message: str = "", expected_generation: int | None = None, dry_run: bool = False
    ) -> ModelStatus:
        """Keeps the rollout on its way at its step, where its gates go on holding; one that waits does not begin.

        Args:
            name: The model.
            message: Why, for the history.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It has no rollout on its way, that is paused, or the model is at another generation.
        """
        return self._loop.run(
            self._platform.pause(name, message=message, expected_generation=expected_generation, dry_run=dry_run)
        )

    def resume(
        self, name: str, *, message: str = "", expected_generation: int | None = None, dry_run: bool = False
    ) -> ModelStatus:
        """Lets a paused rollout go on.

        Args:
            name: The model.
            message: Why, for the history.
            expected_generation: Only if the model is still at this ``generation``.
            dry_run: Change nothing: return what the model's status would be.

        Raises:
            ModelNotFound: There is none of that name.
            Conflict: It has no rollout that is paused, or is at another generation.
        """
        return self._loop.run(
            self._platform.resume(name, message=message, expected_generation=expected_generation, dry_run=dry_run)
        )

    def pools(self) -> tuple[Pool, ...]:
        """Where models with ``shared: true`` live: what their processes hold, and how often a model was there."""
        return self._loop.run(self._platform.pools())

    def revisions(self, name: str) -> tuple[Revision, ...]:
        """The history of a model, newest first.

        Raises:
            ModelNotFound: There is none of that name.
        """
        return self._loop.run(self._platform.revisions(name))

    def events(self, name: str | None = None, *, limit: int = 100) -> tuple[Event, ...]:
        """The latest of what happened, newest first.

        Args:
            name: To this model only, which may be gone; None for all.
            limit: How many at most.
        """
        return self._loop.run(self._platform.events(name, limit=limit))

    def watch(self, name: str | None = None, *, after: int | None = None) -> Generator[Event]:
        """What happens, as it happens; it never ends by itself, and outlives a platform that starts anew.

        Args:
            name: To this model only; None for all.
            after: Id of an event: begin with those after it. None: begin now.
        """
        watching = EventWatch(self._transport, name, after)
        while True:
            yield from self._loop.run(watching.next())

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
        headers: Mapping[str, str] | None = None,
    ) -> InferenceResponse:
        """Asks a model; where the connection breaks, again.

        Args:
            name: The model.
            inputs: Rows as an array or nested list; a DataFrame; records; or arrays by input name.
            outputs: What to answer, for example ``["predict_proba"]``; empty for the model's default.
            version: Revision number or label; None for wherever the model's traffic goes.
            parameters: Sent along with the request.
            timeout_s: Deadline, of all attempts together; None for the platform's own.
            headers: Sent along, for example whose request it is where the model is ``sticky``, or
                ``x-modelyard-revision``.

        Returns:
            The answer; ``.outputs`` has the arrays by name, read-only.

        Raises:
            InvalidRequest: The inputs do not fit the model, or a header cannot be sent.
            ModelNotFound: There is no such model or version.
            ModelNotReady: It cannot answer now.
            DeadlineExceeded: The time is over.
            PlatformUnreachable: No connection can be made, or none that lasts.
            Unsupported: Headers, inside the cluster, where requests do not travel over HTTP.
        """
        return self._loop.run(
            self._platform.predict(
                name,
                inputs,
                outputs=outputs,
                version=version,
                parameters=parameters,
                timeout_s=timeout_s,
                headers=headers,
            )
        )

    def infer(
        self,
        name: str,
        request: InferenceRequest,
        *,
        version: str | int | None = None,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> InferenceResponse:
        """Like :meth:`predict`, with the request as the platform's own object."""
        return self._loop.run(
            self._platform.infer(name, request, version=version, timeout_s=timeout_s, headers=headers)
        )
