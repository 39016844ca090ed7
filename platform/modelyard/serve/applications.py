# SPDX-License-Identifier: Apache-2.0
"""One Ray Serve application per revision: its name, and how it is deployed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from modelyard.catalog import ModelRecord, RevisionRecord
from modelyard.config import Autoscaling, Limits, ModelSpec, Resources, Runtime, parse_model_spec
from modelyard.environments.overlay import Overlay
from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import get_framework, runs_elsewhere
from modelyard.scaling import Bounds, Window
from modelyard.serve.handle import DEPLOYMENT_NAME
from modelyard.serve.placement import Need
from modelyard.serve.process import DRAIN_TIMEOUT_S
from modelyard.serve.replica import ModelReplica
from modelyard.serve.revision import Batching, RevisionSpec
from modelyard.serve.runtimes import find_overlay, to_runtime_env
from modelyard.store import resolve
from modelyard.store.cache import outline
from modelyard.store.remote import is_remote

logger = logging.getLogger(__name__)

CONSTRUCTOR_ATTEMPTS: Final = 2
SERVE_CALLS_PER_REPLICA: Final = 100
AFTER_DRAIN_S: Final = 10.0
"""What a replica that stops has after it has answered everything, before Serve ends it."""
QUIET: Final = LoggingConfig(enable_access_log=False, log_level="WARNING")
_ANY_OF_THE_TYPE: Final = 0.001
"""What Ray itself asks for of a node's accelerator type. Source: Ray ``RESOURCE_CONSTRAINT_PREFIX``."""


def application_name(model: str, number: int) -> str:
    """``iris@1``; ``@`` cannot occur in a model's name."""
    return f"{model}@{number}"


def may_sleep(model: ModelRecord) -> bool:
    """The model may run without any replica, at some hours at least."""
    scaling = model.spec.get("autoscaling")
    if not isinstance(scaling, Mapping):
        return False
    schedule = scaling.get("schedule")
    bounds = [scaling, *(schedule if isinstance(schedule, list) else ())]
    return any(isinstance(one, Mapping) and one.get("min_replicas") == 0 for one in bounds)


def load_timeout_s(model: ModelRecord) -> float:
    """How long a replica of the model may take to load it; the default where its record says nothing useful."""
    limits = model.spec.get("limits")
    found = limits.get("load_timeout_s") if isinstance(limits, Mapping) else None
    return float(found) if isinstance(found, int | float) else Limits().load_timeout_s


@dataclass(frozen=True, slots=True)
class RevisionDeployment:
    """Everything that decides how one revision runs.

    Attributes:
        application: Name of its Serve application.
        content: The revision: ``ModelSpec.revision_content()`` with the artifact's digest.
        spec: The model as it is now; its settings apply to every revision.
        digest: Identity of ``content``.
        runtime: What its replicas run in.
        overlay: The packages that have to be there before; None where the platform's are enough.
    """

    application: str
    content: Mapping[str, Any]
    spec: ModelSpec
    digest: str
    runtime: Runtime
    overlay: Overlay | None

    @classmethod
    def from_records(cls, model: ModelRecord, revision: RevisionRecord) -> RevisionDeployment:
        """The deployment of one revision in the catalog.

        Raises:
            InvalidConfig: What the catalog has is no model, or its framework is not there any more.
            KeyError: What the catalog has is no revision.
            ValueError: What the catalog has is no runtime.
        """
        spec, content = parse_model_spec(model.spec), revision.content
        runtime = Runtime.model_validate(content.get("runtime", {}))
        overlay = find_overlay(content["framework"], runtime)
        name = application_name(model.name, revision.number)
        return cls(name, content, spec, revision.digest, runtime, overlay)

    @property
    def fingerprint(self) -> str:
        """Equal exactly when deploying again would change nothing."""
        text = json.dumps([self.digest, self.spec.settings()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def max_batch_size(self) -> int:
        """Rows in one call of the model."""
        return self.spec.batching.max_batch_size

    @property
    def is_shared(self) -> bool:
        """It lives in a pool and has no application of its own."""
        return bool(self.content.get("shared"))

    @property
    def has_standby(self) -> bool:
        """A pool answers for it while it has no replica."""
        may_share = get_framework(self.content["framework"]).may_share
        return self.spec.autoscaling.standby and may_share and not self.is_shared

    def to_revision(self, platform: str) -> RevisionSpec:
        """What a replica needs to load it.

        Args:
            platform: The application of the platform that it belongs to.
        """
        return RevisionSpec(
            model=self.spec.name,
            framework=self.content["framework"],
            uri=self.content["uri"],
            options=dict(self.content["options"]),
            digest=self.digest,
            artifact=self.content.get("artifact", ""),
            platform=platform,
            warmup=tuple(self.content.get("warmup", ())),
        )

    def to_target(self, platform: str, attempt: str, policies: Mapping[str, str], *, is_new: bool) -> serve.RunTarget:
        """What ``serve.run_many`` takes.

        Args:
            platform: The application of the platform that it belongs to.
            attempt: Identity of what is tried; see ``Knowledge.attempt``.
            policies: The platform's own autoscaling policies.
            is_new: It does not run yet: else it goes on with as many replicas as its load has given it.
        """
        revision = self.to_revision(platform)
        # Without a version of its own Serve would restart every replica each time the controller repeats itself.
        restart_text = json.dumps([asdict(revision), attempt], sort_keys=True)
        version = hashlib.sha256(restart_text.encode()).hexdigest()[:16]
        bundles = self._bundles()
        placement: dict[str, Any] = {"placement_group_bundles": bundles, "placement_group_strategy": "PACK"}
        if self.spec.resources.node_labels:
            placement["placement_group_bundle_label_selector"] = [self.spec.resources.node_labels] * len(bundles)
        deployment = serve.deployment(
            name=DEPLOYMENT_NAME,
            max_ongoing_requests=max(SERVE_CALLS_PER_REPLICA, self.spec.max_ongoing_requests),
            max_constructor_retry_count=CONSTRUCTOR_ATTEMPTS,
            max_surge_percent=100,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=max(DRAIN_TIMEOUT_S, self.batching.request_timeout_s) + AFTER_DRAIN_S,
            health_check_period_s=5,
            autoscaling_config=to_autoscaling(
                self.spec.autoscaling, self.spec.target_ongoing_requests, policies, is_new=is_new
            ),
            ray_actor_options=to_actor_options(
                self.spec.resources, to_runtime_env(self.runtime, self.overlay), is_alone=not bundles
            ),
            user_config=asdict(self.batching),
            logging_config=QUIET,
        )(ModelReplica)
        application = deployment.options(version=version, _internal=True, **(placement if bundles else {})).bind(
            self.application, revision, attempt
        )
        return serve.RunTarget(target=application, name=self.application, route_prefix=None)

    @property
    def batching(self) -> Batching:
        """The limits its replicas take while they run."""
        return Batching(
            max_batch_size=self.spec.batching.max_batch_size,
            batch_wait_timeout_s=self.spec.batching.batch_wait_timeout_s,
            max_queued_requests=self.spec.limits.max_queued_requests + self.spec.max_ongoing_requests,
            request_timeout_s=self.spec.limits.request_timeout_s,
        )

    def needs(self) -> list[Need]:
        """What the processes of one replica take of a node.

        Raises:
            InvalidConfig: Its workers cannot share its GPUs.
        """
        resources = self.spec.resources
        bundles = self._bundles()
        if not bundles:
            options = to_actor_options(resources, None, is_alone=True)
            alone = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
            if resources.accelerator_type is not None:
                alone[f"accelerator_type:{resources.accelerator_type}"] = _ANY_OF_THE_TYPE
            bundles = [{name: amount for name, amount in (alone | resources.custom).items() if amount}]
        return [Need(bundle, resources.node_labels) for bundle in bundles]

    def _bundles(self) -> list[dict[str, float]]:
        """Where the workers of a replica with GPUs are placed; its own process is with the first. Empty without."""
        resources = self.spec.resources
        framework = get_framework(self.content["framework"])
        if not resources.num_gpus or runs_elsewhere(framework, self.content["uri"]):
            return []
        options = framework.options.model_validate(self.content["options"])
        uri = str(self.content["uri"])
        if is_remote(uri):
            with _known_outline(uri, self.content["artifact"]) as path:
                workers = framework.workers(path, options)
        else:
            workers = framework.workers(resolve(uri), options)
        if not workers:
            return []
        if workers > 1 and resources.num_gpus % workers:
            raise InvalidConfig(
                (f"resources.num_gpus: expected a multiple of {workers}, its workers, got {resources.num_gpus:g}",)
            )
        each: dict[str, float] = {"GPU": resources.num_gpus / workers}
        if resources.accelerator_type is not None:
            each[f"accelerator_type:{resources.accelerator_type}"] = _ANY_OF_THE_TYPE
        first = {"CPU": resources.num_cpus, **resources.custom, **each}
        if resources.memory_mb is not None:
            first["memory"] = resources.memory_mb * 1024 * 1024
        return [first, *([each] * (workers - 1))]


@contextmanager
def _known_outline(uri: str, artifact: str) -> Iterator[Path]:
    """What is known of an artifact in a store; while that does not answer, a path where nothing is."""
    try:
        copy = outline(uri, artifact)
    except ModelLoadError as exc:
        logger.info("%s: %s", uri.partition("?")[0], exc)
        yield Path(uri)
    else:
        yield copy.path


def to_autoscaling(
    scaling: Autoscaling, ongoing_requests: float, policies: Mapping[str, str], *, is_new: bool
) -> AutoscalingConfig:
    """What Serve is told of how many replicas there are to be.

    Args:
        scaling: What the user wants.
        ongoing_requests: In flight for each replica, where the user does not say.
        policies: The platform's own ones.
        is_new: It does not run yet: else it goes on with as many replicas as its load has given it.
    """
    bounds, targets = scaling.to_bounds(), scaling.to_targets(ongoing_requests)
    # Serve has one for all times; the policy keeps to those of the hour.
    all_bounds: list[Bounds | Window] = [bounds, *bounds.windows]
    return AutoscalingConfig(
        min_replicas=min(one.min_replicas for one in all_bounds),
        max_replicas=max(one.max_replicas for one in all_bounds),
        initial_replicas=(scaling.initial_replicas or max(1, scaling.min_replicas)) if is_new else None,
        target_ongoing_requests=targets.in_flight,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        downscale_to_zero_delay_s=scaling.downscale_to_zero_delay_s,
        metrics_interval_s=2.0,
        look_back_period_s=5.0,
        policy={
            "policy_function": "modelyard.serve.autoscaling:FollowLoad",
            "policy_kwargs": {
                "targets": asdict(targets),
                "bounds": asdict(bounds),
                "policy": policies.get(scaling.policy, "") if scaling.policy else "",
            },
        },
    )


def to_actor_options(resources: Resources, runtime_env: Mapping[str, Any] | None, *, is_alone: bool) -> dict[str, Any]:
    """What a replica's own process takes.

    Args:
        resources: What the user says that it reserves.
        runtime_env: What it runs in; None for what the platform does.
        is_alone: It has no workers; else the GPUs are theirs.
    """
    options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus if is_alone else 0}
    if resources.memory_mb is not None:
        options["memory"] = resources.memory_mb * 1024 * 1024
    if resources.accelerator_type is not None and is_alone:
        options["accelerator_type"] = resources.accelerator_type
    if resources.custom:
        options["resources"] = dict(resources.custom)
    if resources.node_labels and is_alone:
        options["label_selector"] = dict(resources.node_labels)
    if runtime_env:
        options["runtime_env"] = dict(runtime_env)
    return options
