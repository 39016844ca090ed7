# SPDX-License-Identifier: Apache-2.0
"""A platform without a cluster: the admin API and v2 infer over a real catalog, no sockets.

For tests of the client and the CLI, and of programs that use them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import orjson

from modelyard.admin import Event, ModelState, ModelStatus, Pool, Revision
from modelyard.catalog import Catalog, ModelEntry, ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.client import HttpTransport, Platform
from modelyard.config import (
    RolloutPlan,
    TrafficPlan,
    load_model_spec,
    merge_rollout,
    parse_model_spec,
    parse_section,
    to_short,
)
from modelyard.errors import (
    InvalidConfig,
    ModelNotFound,
    ModelNotReady,
    ModelyardError,
    RouteNotFound,
    Unavailable,
)
from modelyard.inference import InferenceResponse
from modelyard.outcomes import Outcomes
from modelyard.protocol import v2
from modelyard.rollout import Rollout, RolloutState, Shadow, decide, measure
from modelyard.signature import TensorSpec

_GOING = {"unregister": ModelState.REMOVING, "unload": ModelState.UNLOADING}


class FakePlatform:
    """Answers as a platform would whose models add up the rows of their only input.

    Args:
        catalog: Where registered models go.

    Attributes:
        coming: States a model's newest revision passes through, one for each look at the model, before it is ready. A
            rollout goes one step on with each look.
        failures: Why revisions cannot be loaded, by model and number.
        seen: What has become of the requests to the revision of a model's rollout.
        is_away: Its controller does not answer just now.
        requests: What has arrived.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.coming: dict[str, list[tuple[ModelState, str]]] = defaultdict(list)
        self.failures: dict[tuple[str, int], str] = {}
        self.seen: dict[str, Outcomes] = defaultdict(Outcomes)
        self.is_away = False
        self.requests: list[httpx.Request] = []

    def open_transport(self) -> HttpTransport:
        """A transport that ends here instead of in the network."""
        return HttpTransport("http://platform.test", transport=httpx.MockTransport(self.answer))

    def connect(self) -> Platform:
        """A client of this platform."""
        return Platform(self.open_transport)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """One reply."""
        self.requests.append(request)
        parts = request.url.path.strip("/").split("/")
        try:
            if self.is_away:
                raise Unavailable("the platform's controller does not answer")
            if parts == ["platform", "v1", "events"]:
                return self._events(request, None)
            if parts == ["platform", "v1", "pools"]:
                return self._pools()
            if parts[:3] == ["platform", "v1", "models"] and len(parts) <= 6:
                return self._answer_admin(request, parts[3:])
            if parts[:2] == ["v2", "models"] and parts[-1] == "infer":
                return self._answer_infer(request, parts[2], parts[4] if len(parts) == 6 else "")
            raise RouteNotFound(f"no route {request.url.path}")
        except InvalidConfig as exc:
            return _to_reply(exc, {"problems": list(exc.problems)})
        except ModelyardError as exc:
            return _to_reply(exc, {} if parts[0] == "v2" else {"code": exc.code})

    def _answer_admin(self, request: httpx.Request, names: list[str]) -> httpx.Response:
        if not names and request.method == "POST":
            return self._register(request)
        if not names:
            return httpx.Response(200, json={"models": [self._status(r).to_dict() for r in self.catalog.list_models()]})
        name, *way = names
        if way == ["spec"]:
            return httpx.Response(200, json=to_short(parse_model_spec(self.catalog.get_model(name).spec)))
        if way in (["revisions"], ["events"]):
            return self._revisions(name) if way == ["revisions"] else self._events(request, name)
        if way:
            return self._change(request, name, way)
        if request.method == "DELETE":
            return self._change(request, name, ["unregister"])
        return httpx.Response(200, json=self._look(name).to_dict())

    def _register(self, request: httpx.Request) -> httpx.Response:
        document, params = orjson.loads(request.content), request.url.params
        by = _find_by(request, document)
        spec = load_model_spec(document)
        entry = ModelEntry(spec.name, spec.to_json(), spec.revision_content(), spec.revision_digest(""))
        if params.get("dry_run") == "true":
            expected = by.get("expected_generation")
            plan = self.catalog.plan_model(entry, owner=Owner.REGISTERED, expected_generation=expected)
            return httpx.Response(200, json=plan.to_dict())
        is_new = self.catalog.find_model(spec.name) is None
        record = self.catalog.put_model(entry, owner=Owner.REGISTERED, **by)
        if record.rollout is not None and record.rollout.is_plain:
            record = self._advance(record)
        return httpx.Response(201 if is_new else 200, json=self._status(record).to_dict())

    def _change(self, request: httpx.Request, name: str, way: list[str]) -> httpx.Response:
        """Every verb that changes a model there is."""
        document = orjson.loads(request.content or b"{}")
        by = _find_by(request, document)
        is_dry_run = request.url.params.get("dry_run") == "true"
        catalog = self.catalog.rehearsal() if is_dry_run else self.catalog
        verb, *rest = way
        if verb == "unregister":
            record = catalog.remove_model(name, **by, owner=Owner.REGISTERED)
        elif verb == "unload":
            record = catalog.unload_model(name, **by)
        elif verb == "load":
            record = self._load(catalog, name, by)
        elif verb == "labels" and len(rest) == 1:
            number = None if request.method == "DELETE" else self._number(name, document["revision"])
            record = catalog.set_label(name, rest[0], number, **by)
        elif verb == "traffic":
            record = self._set_traffic(catalog, name, document, by)
        elif verb in ("promote", "rollback"):
            move = catalog.promote if verb == "promote" else catalog.roll_back
            number = self._number(name, document["revision"]) if "revision" in document else None
            record = move(name, number, is_ready=not self.coming[name], **by)
        elif way == ["rollout", "abort"]:
            record = catalog.abort(name, **by)
        elif verb == "rollout":
            pause = catalog.pause if rest == ["pause"] else catalog.resume
            record = pause(name, **by) if rest else self._roll_out(catalog, name, document, by)
        else:
            raise RouteNotFound(f"no route {verb}")
        if is_dry_run:
            return httpx.Response(200, json=self._foresee(record, verb).to_dict())
        self._expect(name, verb)
        return httpx.Response(202, json=self._status(record).to_dict())

    def _foresee(self, record: ModelRecord, verb: str) -> ModelStatus:
        before, status = self._get(record.name), self._status(record)
        state = _GOING.get(verb, status.state)
        return replace(status, state=state, generation=before.generation, updated_at=before.updated_at)

    def _expect(self, name: str, verb: str) -> None:
        """The states that come of a change."""
        if verb in _GOING:
            self.coming[name] = [(_GOING[verb], "")]
        elif verb == "load":
            self.coming[name] = [state for state in self.coming[name] if state[0] is not ModelState.UNLOADING]

    def _number(self, name: str, revision: int | str) -> int:
        """Of a revision that is given by number or label."""
        labels = self._get(name).labels
        if isinstance(revision, str) and not revision.isdecimal() and revision not in labels:
            raise ModelNotFound(name, revision)
        return labels.get(str(revision)) or int(revision)

    def _set_traffic(self, catalog: Catalog, name: str, document: dict[str, Any], by: dict[str, Any]) -> ModelRecord:
        change = parse_section(TrafficPlan, document)
        weights = {self._number(name, revision): weight for revision, weight in (change.weights or {}).items()}
        shadow = None
        if change.shadow is not None:
            number = self._number(name, change.shadow.revision)
            shadow = Shadow(number, change.shadow.percent, change.shadow.tolerance)
        keep = "shadow" not in change.model_fields_set
        return catalog.set_traffic(name, weights or None, shadow=shadow, keep_shadow=keep, **by)

    def _roll_out(self, catalog: Catalog, name: str, document: dict[str, Any], by: dict[str, Any]) -> ModelRecord:
        plan = parse_section(RolloutPlan, merge_rollout(self._get(name).spec.get("rollout", {}), document))
        rollout = Rollout.from_dict(plan.model_dump(mode="json") | {"to": self._number(name, plan.to)})
        return catalog.begin_rollout(name, rollout, **by)

    def _get(self, name: str) -> ModelRecord:
        record = self.catalog.find_model(name)
        if record is None:
            raise ModelNotFound(name)
        return record

    def _pools(self) -> httpx.Response:
        """One without processes for each framework of shared models."""
        contents = [one.content for record in self.catalog.list_models() for one in record.revisions]
        lived = Counter(f"pool@{content['framework']}" for content in contents if content.get("shared"))
        return httpx.Response(
            200, json={"pools": [Pool(name, count).to_dict() for name, count in sorted(lived.items())]}
        )

    def _revisions(self, name: str) -> httpx.Response:
        record, kept = self._get(name), self.catalog.list_revisions(name)
        before = (None, *kept)
        found = [self._to_revision(record, one, last).to_dict() for last, one in zip(before, kept, strict=False)]
        return httpx.Response(200, json={"revisions": found[::-1]})

    def _to_revision(self, record: ModelRecord, one: RevisionRecord, before: RevisionRecord | None) -> Revision:
        known = before.content if before is not None else one.content
        is_in_use = one.number in record.traffic or one.number in record.labels.values()
        state, reason = self._state(record, one.number) if is_in_use else ("", "")
        return Revision(
            number=one.number,
            digest=one.digest,
            created_at=one.created_at,
            actor=one.actor,
            message=one.message,
            promoted_at=one.promoted_at or "",
            traffic=record.traffic.get(one.number, 0.0) if is_in_use else None,
            labels=tuple(label for label, number in record.labels.items() if number == one.number),
            state=str(state),
            reason=reason,
            changed={key: (known.get(key), value) for key, value in one.content.items() if known.get(key) != value},
        )

    def _events(self, request: httpx.Request, name: str | None) -> httpx.Response:
        after = request.url.params.get("after")
        limit = int(request.url.params.get("limit", 100))
        found = self.catalog.list_events(name, limit, after=None if after is None else int(after))
        return httpx.Response(200, json={"events": [Event(**asdict(event)).to_dict() for event in found]})

    def _load(self, catalog: Catalog, name: str, by: dict[str, Any]) -> ModelRecord:
        known = self._get(name)
        latest = known.latest or known.active
        entry = ModelEntry(name, known.spec, latest.content, latest.digest)
        return catalog.load_model(entry, **by)

    def _look(self, name: str) -> ModelStatus:
        """One look at a model, which moves it on to its next state."""
        record = self.catalog.find_model(name)
        if record is not None and record.wanted is Wanted.REMOVED and not self.coming[name]:
            self.catalog.purge_model(name)
            record = None
        if record is None:
            raise ModelNotFound(name)
        if self.coming[name]:
            status = self._status(record)
            self.coming[name].pop(0)
            return status
        return self._status(self._advance(record))

    def _advance(self, record: ModelRecord) -> ModelRecord:
        """The model with its rollout a step further, as far as its gates let it."""
        rollout = record.rollout
        if rollout is None or not rollout.is_active or self.coming[record.name]:
            return record
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        seen = self.seen[record.name]
        failure = self.failures.get((record.name, rollout.to), "")
        decided = decide(rollout, is_ready=not failure, failure=failure, seen=seen, elapsed_s=math.inf, now=now)
        return record if decided is rollout else self.catalog.advance_rollout(record.name, decided)

    def _status(self, record: ModelRecord) -> ModelStatus:
        number, state, reason = self._shown(record)
        rollout = record.rollout
        failure = self.failures.get((record.name, rollout.to)) if rollout is not None else None
        if rollout is not None and rollout.state is RolloutState.WAITING and failure is not None:
            rollout = replace(rollout, reason=f"its revision has failed: {failure}")
        elif rollout is not None and rollout.is_watched:
            rollout = replace(rollout, measured=measure(self.seen[record.name]))
        return ModelStatus(
            name=record.name,
            framework=record.spec["framework"],
            uri=record.spec["uri"],
            owner=record.owner,
            state=state,
            reason=reason,
            version=str(number),
            replicas_ready=int(state is ModelState.READY),
            replicas_wanted=1,
            url_path=f"/v2/models/{record.name}",
            created_at=record.created_at,
            updated_at=record.updated_at,
            inputs=(TensorSpec("input-0", "FP64", (-1, 4)),),
            message=record.active.message,
            generation=record.generation,
            traffic={str(number): weight for number, weight in record.traffic.items()},
            labels={label: str(number) for label, number in record.labels.items()},
            rollout=rollout,
            shadow=record.shadow,
        )

    def _shown(self, record: ModelRecord) -> tuple[int, ModelState, str]:
        """The revision that a status speaks of: that with the traffic, or the one that is about to have all of it."""
        active = record.active.number
        rollout = record.rollout if record.is_rolling_out else None
        number = rollout.to if rollout is not None and rollout.is_plain else active
        if rollout is not None and (failure := self.failures.get((record.name, rollout.to))) is not None:
            return active, ModelState.READY, f"revision {rollout.to} failed and gets no traffic: {failure}"
        return number, *self._state(record, number)

    def _state(self, record: ModelRecord, number: int) -> tuple[ModelState, str]:
        """Of one revision in use."""
        if (failure := self.failures.get((record.name, number))) is not None:
            return ModelState.FAILED, failure
        rollout, coming = record.rollout, self.coming[record.name]
        newest = rollout.to if rollout is not None and rollout.is_active else record.active.number
        if coming and (number == newest or record.wanted is not Wanted.SERVING):
            return coming[0]
        return (ModelState.UNLOADED, "unloaded") if record.wanted is Wanted.UNLOADED else (ModelState.READY, "")

    def _answer_infer(self, request: httpx.Request, name: str, version: str) -> httpx.Response:
        record = self._get(name)
        if version and version not in {*map(str, record.traffic), *record.labels}:
            raise ModelNotFound(name, version)
        number = int(record.labels.get(version) or version or record.active.number)
        state, reason = self._state(record, number)
        if state is not ModelState.READY:
            raise ModelNotReady(name, f"{state}: {reason}")
        length = request.headers.get("inference-header-content-length")
        decoded = v2.decode_infer(request.content, int(length) if length else None)
        (array,) = list(decoded.inputs.values())[:1]
        result = array if array.dtype.kind == "O" else np.asarray(array.sum(axis=-1))
        names = [output.name for output in decoded.outputs] or ["output-0"]
        response = InferenceResponse(name, str(number), decoded.id or "1", dict.fromkeys(names, result))
        encoded = v2.encode_infer(response, decoded)
        headers = [(key.decode(), value.decode()) for key, value in encoded.headers]
        return httpx.Response(encoded.status, content=encoded.body, headers=headers)


def _find_by(request: httpx.Request, document: dict[str, Any]) -> dict[str, Any]:
    """Who asks, and why: a member of the body, which is taken out of it, or a parameter."""
    params = request.url.params
    expected = int(params["expected_generation"]) if "expected_generation" in params else None
    message = document.pop("message", params.get("message", ""))
    actor = request.headers.get("x-modelyard-actor", "")
    return {"actor": actor, "message": message, "expected_generation": expected}


def _to_reply(error: ModelyardError, extra: dict[str, Any]) -> httpx.Response:
    code = {"code": error.code} if isinstance(error, InvalidConfig) else {}
    return httpx.Response(error.http_status, json={"error": str(error), **code, **extra})
