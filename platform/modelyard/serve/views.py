# SPDX-License-Identifier: Apache-2.0
"""What others see of a model: its entry in the route table, and its status.

Made from the catalog's record and the plan of the controller's last round; nothing else decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from modelyard.admin import ModelState, ModelStatus
from modelyard.batching import report_batch_id
from modelyard.catalog import ModelRecord, Wanted
from modelyard.config import ModelSpec, parse_model_spec
from modelyard.routing import ModelRoute, RevisionRoute
from modelyard.serve.applications import application_name
from modelyard.serve.plan import ModelPlan, RevisionState, newest_revision, unloaded_state
from modelyard.signature import Description


def model_route(
    model: ModelRecord, plan: ModelPlan, described: Mapping[str, Description], max_inflight: int
) -> ModelRoute:
    """What the ingress replicas are told.

    Args:
        model: From the catalog.
        plan: Of the same round.
        described: What applications tell of themselves, as far as known.
        max_inflight: Requests to any one model that an ingress replica may hold.

    Raises:
        InvalidConfig: The record's spec is none.
        ValueError: Its date is none.
    """
    spec = parse_model_spec(model.spec)
    serving = _serving(plan)
    shown = {one.number: one for one in plan.others}
    shown |= {serving.number: serving} | ({plan.newest.number: plan.newest} if plan.serving else {})
    revisions = {
        str(number): _revision_route(spec, state, described, max_inflight) for number, state in sorted(shown.items())
    }
    # What points at the newest points at what answers in its place until it is ready.
    pointed = {
        label: serving.number if number == plan.newest.number else number for label, number in model.labels.items()
    }
    labels = {label: str(number) for label, number in pointed.items() if number in shown}
    created = int(datetime.fromisoformat(model.created_at).timestamp())
    return ModelRoute(model.name, str(serving.number), revisions, labels, created, model.generation)


def _revision_route(
    spec: ModelSpec, state: RevisionState, described: Mapping[str, Description], max_inflight: int
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
        framework=spec.framework,
        state=state.state.value,
        reason=state.reason,
        signature=signature,
        max_batch_size=spec.batching.max_batch_size,
        batch_wait_timeout_s=spec.batching.batch_wait_timeout_s,
        max_inflight_requests=min(taken, max_inflight),
        request_timeout_s=spec.limits.request_timeout_s,
        replicas=state.running,
        num_gpus=spec.resources.num_gpus,
        members=description.members if description else {},
        publishes_members=description is not None and description.publishes_members,
        concurrency=description.concurrency if description else 1,
        openai_routes=description.openai_routes if description else (),
        adapters=description.adapters if description else (),
    )


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
    return ModelStatus(
        name=record.name,
        framework=str(record.spec.get("framework", "")),
        uri=str(record.spec.get("uri", "")),
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
        message=record.active.message if record.revisions else "",
        generation=record.generation,
        members=tuple(description.members) if description else (),
        adapters=description.adapters if description else (),
        properties=description.properties if description else {},
    )


def _shown_state(record: ModelRecord, plan: ModelPlan | None) -> RevisionState:
    """The revision to speak of, and its state: what the last round saw, where the record has not outdated it."""
    newest = newest_revision(record)
    pending = RevisionState(newest, ModelState.PENDING, "its replicas are being created")
    if record.wanted is Wanted.REMOVED:
        return RevisionState(newest, ModelState.REMOVING, "it answers what it has accepted, then goes")
    is_current = plan is not None and plan.generation == record.generation
    if record.wanted is Wanted.UNLOADED:
        return plan.newest if plan is not None and is_current else unloaded_state(newest, is_running=True)
    if plan is None or plan.serving is None or plan.newest.number != newest:
        return pending
    if not is_current and plan.newest.state not in (ModelState.READY, ModelState.LOADING):
        return pending
    if plan.serving.state is ModelState.READY and plan.newest.state is ModelState.FAILED:
        return replace(plan.serving, reason=f"revision {newest} failed and gets no traffic: {plan.newest.reason}")
    return plan.newest
