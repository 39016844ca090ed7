# SPDX-License-Identifier: Apache-2.0
"""What others see of a model: its entry in the route table, and its status.

Made from the catalog's record and the plan of the controller's last round; nothing else decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from modelyard.admin import ModelState, ModelStatus, Revision
from modelyard.batching import report_batch_id
from modelyard.catalog import STABLE, ModelRecord, RevisionRecord, Wanted, compare
from modelyard.config import ModelSpec, parse_model_spec
from modelyard.rollout import RolloutState, Shadow
from modelyard.routing import ModelRoute, RevisionRoute, ShadowRoute
from modelyard.serve.applications import application_name
from modelyard.serve.plan import ModelPlan, RevisionState, newest_revision, unloaded_state
from modelyard.serve.residents import Resident
from modelyard.signature import Description

_CREATED: Final = "its replicas are being created"


def model_route(
    model: ModelRecord,
    plan: ModelPlan,
    described: Mapping[str, Description],
    residents: Mapping[str, Resident],
    max_inflight: int,
    find_standby: Callable[[str], Resident | None] = lambda _: None,
) -> ModelRoute:
    """What the ingress replicas are told.

    Args:
        model: From the catalog.
        plan: Of the same round.
        described: What applications tell of themselves, as far as known.
        residents: Those that live in pools, by the name that an application of their own would have.
        max_inflight: Requests to any one model that an ingress replica may hold.
        find_standby: What answers for an application while it has no replica.

    Raises:
        InvalidConfig: The record's spec is none.
        ValueError: Its date is none.
    """
    spec = parse_model_spec(model.spec)
    serving = _serving(plan)
    shown = {one.number: one for one in plan.others}
    shown |= {serving.number: serving} | ({plan.newest.number: plan.newest} if plan.serving else {})
    frameworks = {one.number: str(one.content.get("framework", spec.framework)) for one in model.revisions}
    revisions = {
        str(number): _revision_route(spec, state, frameworks.get(number, spec.framework), described, max_inflight)
        for number, state in sorted(shown.items())
    }
    revisions = {number: _place(route, residents, find_standby) for number, route in revisions.items()}
    labels = {label: str(number) for label, number in model.labels.items() if number in shown}
    if (stable := shown.get(model.labels.get(STABLE, 0))) is not None and stable.state is not ModelState.READY:
        labels[STABLE] = str(serving.number)  # what answers in its place until it is ready
    revisions = _watch(model, revisions)
    created = int(datetime.fromisoformat(model.created_at).timestamp())
    weights = {str(number): weight for number, weight in plan.weights.items()}
    active = str(serving.number)
    return ModelRoute(model.name, active, revisions, labels, created, model.generation, weights, spec.sticky or "")


def _place(
    route: RevisionRoute, residents: Mapping[str, Resident], find_standby: Callable[[str], Resident | None]
) -> RevisionRoute:
    """The route with the pool that it leads to, always or while it has no replica."""
    if (resident := residents.get(route.application)) is not None:
        return replace(route, pool=resident.pool, resident=resident.key)
    is_alone = route.signature is None or route.signature.decoupled or route.publishes_members
    if is_alone or (standby := find_standby(route.application)) is None:
        return route
    return replace(route, standby=replace(route, pool=standby.pool, resident=standby.key))


def _watch(model: ModelRecord, revisions: dict[str, RevisionRoute]) -> dict[str, RevisionRoute]:
    """The routes with what a rollout or a shadow wants of their requests."""
    rollout, shadow = model.rollout, model.shadow
    if rollout is not None and rollout.is_watched and (target := revisions.get(str(rollout.to))) is not None:
        revisions[target.version] = replace(target, is_watched=True)
    if rollout is not None and rollout.wants_shadow:
        shadow = Shadow(rollout.to) if shadow is None or shadow.revision != rollout.to else shadow
    if shadow is None or not (copied := revisions.get(str(shadow.revision))) or not copied.is_ready:
        return revisions
    way = ShadowRoute(copied, shadow.percent, shadow.tolerance)
    return {number: replace(one, shadow=way) if number != copied.version else one for number, one in revisions.items()}


def _revision_route(
    spec: ModelSpec, state: RevisionState, framework: str, described: Mapping[str, Description], max_inflight: int
) -> RevisionRoute:
    application = application_name(spec.name, state.number)
    description = described.get(application)
    signature = description.signature if description else None
    if signature is not None and spec.batching.report_batch_id:
        signature = report_batch_id(signature)
    taken = spec.limits.max_queued_requests + max(1, state.running) * spec.max_ongoing_requests
    return RevisionRoute(
        model=spec.name,
        version=str(state.number),
        application=application,
        framework=framework,
        state=state.state.value,
        reason=state.reason,
        signature=signature,
        max_batch_size=spec.batching.max_batch_size,
        batch_wait_timeout_s=spec.batching.batch_wait_timeout_s,
        max_inflight_requests=min(taken, max_inflight),
        request_timeout_s=spec.limits.request_timeout_s,
        replicas=state.running,
        replica_names=state.replicas if description and description.openai_routes else (),
        num_gpus=spec.resources.num_gpus,
        members=description.members if description else {},
        publishes_members=description is not None and description.publishes_members,
        concurrency=description.concurrency if description else 1,
        openai_routes=description.openai_routes if description else (),
        adapters=description.adapters if description else (),
    )


def show_revisions(
    model: ModelRecord, history: Sequence[RevisionRecord], plan: ModelPlan | None
) -> tuple[Revision, ...]:
    """The history of a model as an operator sees it, newest first.

    Args:
        model: From the catalog.
        history: All its revisions, by number.
        plan: Of the last round; None before the first.
    """
    shown = []
    for before, one in zip([None, *history], history, strict=False):
        state = plan.find(one.number) if plan is not None else None
        is_old = plan is not None and plan.generation != model.generation
        if state is not None and state.state is ModelState.FAILED and is_old:  # it may be tried again by now
            state = RevisionState(one.number, ModelState.PENDING, _CREATED)
        shown.append(
            Revision(
                number=one.number,
                digest=one.digest,
                created_at=one.created_at,
                actor=one.actor,
                message=one.message,
                promoted_at=one.promoted_at or "",
                traffic=model.traffic.get(one.number),
                labels=tuple(label for label, number in model.labels.items() if number == one.number),
                state=state.state.value if state is not None else "",
                reason=state.reason if state is not None else "",
                changed=compare(before.content, one.content) if before is not None else {},
            )
        )
    return tuple(reversed(shown))


def failed_route(model: ModelRecord, plan: ModelPlan) -> ModelRoute:
    """What the ingress replicas are told of a model whose record cannot be followed."""
    state = _serving(plan)
    version, application = str(state.number), application_name(model.name, state.number)
    route = RevisionRoute(model.name, version, application, "", state.state.value, state.reason)
    return ModelRoute(model.name, version, {version: route}, generation=model.generation)


def _serving(plan: ModelPlan) -> RevisionState:
    return plan.serving or RevisionState(plan.newest.number, ModelState.REMOVING, "it is being removed")


def model_status(record: ModelRecord, plan: ModelPlan | None, described: Mapping[str, Description]) -> ModelStatus:
    """What an operator sees.

    Args:
        record: From the catalog, as it is now.
        plan: Of the last round, which may have begun before the record changed; None before the first.
        described: What applications tell of themselves, as far as known.
    """
    state = _shown_state(record, plan)
    description = described.get(application_name(record.name, state.number))
    signature = description.signature if description else None
    content = next((one.content for one in record.revisions if one.number == state.number), record.spec)
    located = record.spec if record.is_versioned else content
    return ModelStatus(
        name=record.name,
        framework=str(content.get("framework", record.spec.get("framework", ""))),
        uri=str(located.get("uri", record.spec.get("uri", ""))),
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
        message=next((one.message for one in record.revisions if one.number == state.number), ""),
        generation=record.generation,
        members=tuple(description.members) if description else (),
        adapters=description.adapters if description else (),
        properties=description.properties if description else {},
        traffic={str(number): weight for number, weight in record.traffic.items()},
        labels={label: str(number) for label, number in record.labels.items()},
        rollout=record.rollout,
        shadow=record.shadow,
    )


def _shown_state(record: ModelRecord, plan: ModelPlan | None) -> RevisionState:
    """The revision to speak of, and its state: what the last round saw, where the record has not outdated it.

    That is the one with the traffic, or the one that is about to have all of it.
    """
    newest = newest_revision(record)
    if record.wanted is Wanted.REMOVED:
        return RevisionState(newest, ModelState.REMOVING, "it answers what it has accepted, then goes")
    is_current = plan is not None and plan.generation == record.generation
    if record.wanted is Wanted.UNLOADED:
        return plan.newest if plan is not None and is_current else unloaded_state(newest, is_running=True)
    rollout = record.rollout if record.is_rolling_out else None
    takes_over = rollout is not None and rollout.is_plain and rollout.state is RolloutState.WAITING
    number = rollout.to if rollout is not None and takes_over else _main_revision(record)
    pending = RevisionState(number, ModelState.PENDING, _CREATED)
    if plan is None or plan.serving is None or (shown := plan.find(number)) is None:
        return pending
    if not is_current and shown.state not in (ModelState.READY, ModelState.LOADING):
        return pending
    looked_at = [shown, *([plan.find(rollout.to)] if rollout is not None else [])]
    if is_current and not takes_over:
        looked_at += [plan.newest, *plan.others]
    failed = next((one for one in looked_at if one is not None and one.state is ModelState.FAILED), None)
    if failed is not None and plan.serving.state is ModelState.READY:
        return replace(plan.serving, reason=f"revision {failed.number} failed and gets no traffic: {failed.reason}")
    if takes_over and shown.state is ModelState.READY:
        return replace(shown, state=ModelState.LOADING, reason="it is ready and gets its traffic now")
    return shown


def _main_revision(record: ModelRecord) -> int:
    """The one with the most traffic; 0 where the catalog has lost them."""
    return record.active.number if record.revisions else 0
