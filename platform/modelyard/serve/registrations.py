# SPDX-License-Identifier: Apache-2.0
"""How models come into the catalog: declared, registered, loaded again, or as versions that appear in a folder.

Each is read with its artifact as it now is. A revision that has failed and is asked for unchanged gets another attempt.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelyard.admin import ModelState, Plan
from modelyard.catalog import Catalog, ModelEntry, ModelRecord, Owner, Wanted
from modelyard.config import ModelSpec, PlatformConfig, check_policy, load_model_spec, parse_model_spec, to_short
from modelyard.errors import (
    Conflict,
    Forbidden,
    InternalError,
    InvalidConfig,
    ModelLoadError,
    ModelNotFound,
    ModelyardError,
    Unavailable,
)
from modelyard.serve.applications import application_name
from modelyard.serve.artifacts import Artifacts, make_absent_entry, make_known_entry
from modelyard.serve.plan import ModelPlan, newest_revision
from modelyard.store.remote import StoreAway, StoreError

logger = logging.getLogger(__name__)

UNUSABLE: Final = "its entry in the catalog cannot be used"
LEFT_OUT: Final = (
    "the configuration file declares it too, which changes nothing: its name is registered at run time. Unregister it "
    "and start again, or take it out of the file"
)
_ATTEMPTS: Final = 3
_SILENT_S: Final = 60.0
"""How long a store that does not answer is not asked for new versions."""
_TELL_AGAIN_S: Final = 600.0
_VERSION_POLICY: Final = "version policy"
"""Who adds the versions that appear in a folder, for the history."""
_STORE: Final = "store"
"""Who loads what was away when the platform started."""


@dataclass(frozen=True, slots=True)
class _Attempts:
    """What is to be tried again of a model.

    Attributes:
        numbers: Of its revisions.
        is_failed: Some have failed.
    """

    numbers: frozenset[int] = frozenset()
    is_failed: bool = False


class Registrations:
    """Writes models to the catalog; from any thread.

    Args:
        catalog: Gets them.
        config: Of the platform.
        failures: Why applications cannot be loaded; declared models whose artifact is missing are added.
        find_plan: The last round's plan of a model.
        on_versions: Told when versions have come or gone.
        clock: In seconds.

    Attributes:
        left_out: Declared models whose names are registered.
    """

    def __init__(
        self,
        catalog: Catalog,
        config: PlatformConfig,
        failures: dict[str, str],
        find_plan: Callable[[str], ModelPlan | None],
        on_versions: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.left_out: frozenset[str] = frozenset()
        self._catalog = catalog
        self._policies = config.autoscaling_policies
        self._artifacts = Artifacts(config.security.model_roots)
        self._failures = failures
        self._find_plan = find_plan
        self._on_versions = on_versions
        self._again: set[str] = set()
        self._clock = clock
        self._away: set[str] = set()
        self._silent: dict[str, float] = {}
        self._told: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    # -- verbs of the admin API; their errors are those of ``AdminTransport``

    def register(self, data: dict[str, Any], actor: str, message: str, expected_generation: int | None) -> ModelRecord:
        """See ``AdminTransport.register``."""
        entry = self._make_registered(data)
        old = self._catalog.find_model(entry.name)
        is_expected = old is not None and expected_generation in (None, old.generation)
        may_try = is_expected and old is not None and old.owner is not Owner.DECLARED  # which is refused below
        again = old is not None and may_try and self._ask_again(old, entry)
        return self._catalog.put_model(
            entry,
            owner=Owner.REGISTERED,
            actor=actor,
            message=message,
            expected_generation=expected_generation,
            again=again,
        )

    def plan(self, data: dict[str, Any], expected_generation: int | None) -> Plan:
        """See ``AdminTransport.plan``."""
        entry = self._make_registered(data)
        old = self._catalog.find_model(entry.name)
        again = old is not None and self._find_attempts(old, entry).is_failed
        return self._catalog.plan_model(
            entry, owner=Owner.REGISTERED, expected_generation=expected_generation, again=again
        )

    def _make_registered(self, data: dict[str, Any]) -> ModelEntry:
        spec = load_model_spec(data)
        if problems := check_policy(spec.autoscaling, self._policies):
            raise InvalidConfig(problems)
        try:
            return self._artifacts.make_entry(spec)
        except StoreError:  # which is nothing that the client could write otherwise
            raise
        except ModelLoadError as exc:
            raise InvalidConfig((f"uri: {exc}",)) from exc

    def spec(self, name: str) -> dict[str, Any]:
        """See ``AdminTransport.spec``."""
        record = self._catalog.get_model(name)
        try:
            return to_short(parse_model_spec({**record.spec, **_served_content(record)}))
        except InvalidConfig as exc:
            raise ModelLoadError(f"{UNUSABLE}: {exc}") from exc

    def reload(self, specs: Sequence[Mapping[str, Any]], actor: str, message: str) -> tuple[ModelRecord, ...]:
        """See ``reload.ReloadTransport.reload``."""
        entries, again = self._make_entries(specs)
        kept, left = self._catalog.sync_reloaded(entries, actor=actor, message=message, again=again)
        return (*kept, *left)

    def _make_entries(self, specs: Sequence[Mapping[str, Any]]) -> tuple[list[ModelEntry], set[str]]:
        """The models with their artifacts as they now are, and the names of those that are to be tried again.

        Raises:
            InvalidConfig: With the problems of all of them.
        """
        entries: list[ModelEntry] = []
        again: set[str] = set()
        problems: list[str] = []
        for index, data in enumerate(specs):
            try:
                spec = load_model_spec(data)
                old = self._catalog.find_model(spec.name)
                entries.append(self._artifacts.make_entry(spec, self._known_digests(old)))
                if old is not None and old.owner is Owner.RELOADED and self._ask_again(old, entries[-1]):
                    again.add(spec.name)
            except InvalidConfig as exc:
                problems += [f"model_config_list.config[{index}]: {problem}" for problem in exc.problems]
            except ModelLoadError as exc:
                problems.append(f"model_config_list.config[{index}].base_path: {exc}")
        if problems:
            raise InvalidConfig(tuple(problems))
        return entries, again

    def _known_digests(self, old: ModelRecord | None) -> dict[str, str]:
        """Digests of the folders of versions that are served; those of others may have changed."""
        served = old.revisions if old is not None and old.wanted is Wanted.SERVING else ()
        kept = (one for one in served if application_name(one.model, one.number) not in self._failures)
        return {one.content["uri"]: one.content["artifact"] for one in kept if "artifact" in one.content}

    def load(
        self,
        name: str,
        actor: str,
        message: str,
        expected_generation: int | None = None,
        *,
        dry_run: bool = False,
        attempts: int = _ATTEMPTS,
    ) -> ModelRecord:
        """See ``AdminTransport.load``."""
        old = self._catalog.get_model(name, expected_generation)
        entry = self._read_again(old)
        again = self._find_attempts(old, entry).is_failed
        asking = contextlib.nullcontext() if dry_run else self._asking_again(old, entry)
        try:
            with asking:
                record = self._writer(dry_run).load_model(
                    entry, actor=actor, message=message, expected_generation=old.generation, again=again
                )
        except Conflict:  # it was changed while its artifact was read
            if attempts == 1 or expected_generation is not None:
                raise
            return self.load(name, actor, message, dry_run=dry_run, attempts=attempts - 1)
        return record

    def _read_again(self, record: ModelRecord) -> ModelEntry:
        """The model as the catalog has it, with its artifact as it now is.

        Raises:
            ModelLoadError: The artifact is not there, or the catalog's entry cannot be used.
        """
        try:
            spec = load_model_spec(record.spec)
        except InvalidConfig as exc:
            raise ModelLoadError(f"{UNUSABLE}: {exc}") from exc
        return self._artifacts.make_entry(spec)

    def unload(
        self, name: str, actor: str, message: str, expected_generation: int | None = None, *, dry_run: bool = False
    ) -> ModelRecord:
        """See ``AdminTransport.unload``."""
        return self._writer(dry_run).unload_model(
            name, actor=actor, message=message, expected_generation=expected_generation
        )

    def unregister(
        self, name: str, actor: str, message: str, expected_generation: int | None = None, *, dry_run: bool = False
    ) -> ModelRecord:
        """See ``AdminTransport.unregister``."""
        return self._writer(dry_run).remove_model(
            name, actor=actor, message=message, expected_generation=expected_generation, owner=Owner.REGISTERED
        )

    def _writer(self, dry_run: bool) -> Catalog:
        return self._catalog.rehearsal() if dry_run else self._catalog

    # -- another attempt

    def try_again(self, name: str, number: int) -> None:
        """Whoever sends traffic to a revision that has failed wants another attempt."""
        application = application_name(name, number)
        if application in self._failures:
            with self._lock:
                self._again.add(application)

    def take_again(self) -> set[str]:
        """The applications that are to be tried again since the last call."""
        with self._lock:
            again, self._again = self._again, set()
        return again

    def put_back(self, again: set[str]) -> None:
        """They have not been tried after all."""
        with self._lock:
            self._again |= again

    def _ask_again(self, model: ModelRecord, entry: ModelEntry) -> bool:
        """Whoever registers or loads a model that has failed, unchanged, wants another attempt.

        What is asked for here, before it is written to the catalog, the round that reads it there has begun with.
        """
        attempts = self._find_attempts(model, entry)
        with self._lock:
            self._again |= {application_name(model.name, number) for number in attempts.numbers}
        return attempts.is_failed

    @contextlib.contextmanager
    def _asking_again(self, model: ModelRecord, entry: ModelEntry) -> Iterator[None]:
        """The same around what writes it to the catalog; where that is away nobody has asked.

        Where it was changed meanwhile somebody else may have, who found this one's request and added none.
        """
        numbers = self._find_attempts(model, entry).numbers
        with self._lock:
            asked = {application_name(model.name, number) for number in numbers} - self._again
            self._again |= asked
        try:
            yield
        except (InternalError, Unavailable):
            with self._lock:
                self._again -= asked
            raise

    def _find_attempts(self, model: ModelRecord, entry: ModelEntry) -> _Attempts:
        """Which revisions are to be tried again where somebody registers or loads a model as it is."""
        latest = model.latest
        if not entry.versions and latest is not None and latest.digest != entry.digest:
            return _Attempts()  # the next revision has no failure to forget
        plan = self._find_plan(model.name)
        failed = (
            {one.number for one in (plan.newest, *plan.others) if one.state is ModelState.FAILED} if plan else set()
        )
        numbers = [version.number for version in entry.versions] or [newest_revision(model)]
        failed |= {number for number in numbers if application_name(model.name, number) in self._failures}
        again = numbers if model.wanted is Wanted.UNLOADED else failed.intersection(numbers)
        return _Attempts(frozenset(again), not failed.isdisjoint(numbers))

    # -- what the platform's file declares

    def declare(self, specs: Sequence[ModelSpec]) -> None:
        """Brings the declared models into the catalog.

        An artifact that is missing fails its own model only, and a name that is registered already is left to the
        registered model.
        """
        entries: list[ModelEntry] = []
        refused: dict[str, str] = {}
        silent: dict[str, StoreAway] = {}  # nobody is asked again and again, for each of its models
        for spec in specs:
            try:
                entries.append(self._make_declared(spec, silent))
            except ModelyardError as exc:
                refused[spec.name] = str(exc)
                if isinstance(exc, StoreAway):
                    self._away.add(spec.name)
                entries.append(make_absent_entry(spec))
        records = self._catalog.sync_declared(entries)
        for record in records:
            if record.name in refused:
                number = (record.latest or record.active).number
                self._failures[application_name(record.name, number)] = refused[record.name]
            if record.wanted is Wanted.UNLOADED:
                logger.info('model "%s" stays unloaded: `modelyard load %s` runs it again', record.name, record.name)
        self.left_out = frozenset(entry.name for entry in entries) - {record.name for record in records}
        for name in sorted(self.left_out):
            logger.warning('model "%s": %s', name, LEFT_OUT)

    def _make_declared(self, spec: ModelSpec, silent: dict[str, StoreAway]) -> ModelEntry:
        """The model with its artifact as it now is, or as it was where its store does not say."""
        store = _find_store(spec.uri)
        try:
            if store in silent:
                raise silent[store]
            return self._artifacts.make_entry(spec)
        except StoreError as exc:
            if isinstance(exc, StoreAway):
                silent[store] = exc
            known = make_known_entry(spec, self._catalog.find_model(spec.name))
            if known is None:
                raise
            logger.warning('model "%s" goes on as it was: %s', spec.name, exc)
            return known

    # -- folders of versions

    def follow_versions(self) -> None:
        """Looks at the folders of versions, and takes what has appeared or gone; and for what was away at the start."""
        for record in self._catalog.list_models():
            store = _find_store(str(record.spec.get("uri", "")))
            is_silent = self._clock() < self._silent.get(store, 0.0)
            if record.wanted is not Wanted.SERVING or record.problem or is_silent:
                continue
            names = {one.number: application_name(record.name, one.number) for one in record.revisions}
            failed = {number for number, name in names.items() if name in self._failures}
            try:
                if record.name in self._away:
                    self._find_away(record)
                elif (entry := self._artifacts.look_again(record, failed)) is not None:
                    self._take_versions(record, entry)
            except ModelyardError as exc:  # its folder is being changed, or the model was; the next look decides
                now = self._clock()
                if isinstance(exc, StoreAway):  # nor is it waited for again, for each of its models
                    self._silent[store] = now + _SILENT_S
                told_at, told = self._told.get(record.name, (now, ""))
                if told != str(exc) or now - told_at > _TELL_AGAIN_S:
                    logger.warning('model "%s": its versions cannot be followed: %s', record.name, exc)
                    self._told[record.name] = now, str(exc)

    def _find_away(self, record: ModelRecord) -> None:
        """Tries a declared model once more whose store did not answer when the platform started.

        Raises:
            ModelyardError: The next look may do.
        """
        try:
            self.load(record.name, _STORE, "its store answers", record.generation)
        except StoreAway:
            raise
        except StoreError as exc:  # whoever gives it other keys need not start the platform anew
            self._failures[application_name(record.name, newest_revision(record))] = str(exc)
            self._silent[_find_store(str(record.spec.get("uri", "")))] = self._clock() + _SILENT_S
            raise
        except (InvalidConfig, Forbidden, ModelLoadError, ModelNotFound) as exc:  # what is wrong does not go by
            self._failures[application_name(record.name, newest_revision(record))] = str(exc)
        self._away.discard(record.name)
        self._on_versions()

    def _take_versions(self, record: ModelRecord, entry: ModelEntry) -> None:
        try:
            with self._asking_again(record, entry):
                self._catalog.load_model(
                    entry,
                    actor=_VERSION_POLICY,
                    message=f"versions {', '.join(str(version.number) for version in entry.versions)}",
                    expected_generation=record.generation,
                )
        except Exception:
            self._artifacts.look_anew(record.name)
            raise
        self._on_versions()


def _served_content(record: ModelRecord) -> Mapping[str, Any]:
    """What makes the revision that has the traffic, where another one was registered after it."""
    latest = record.latest
    is_open = record.is_versioned or record.is_rolling_out or latest is None or not record.revisions
    if is_open or latest is None or record.active.number == latest.number:
        return {}
    return {"warmup": [], "shared": False} | {
        key: value for key, value in record.active.content.items() if key != "artifact"
    }


def _find_store(uri: str) -> str:
    """``s3://bucket`` of ``s3://bucket/models/churn``."""
    return "/".join(uri.split("/")[:3])
