# SPDX-License-Identifier: Apache-2.0
"""The platform's configuration: the ``args`` of the application ``modelyard.serve.app:build``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from modelyard.config.models import check_different
from modelyard.config.problems import join_path, mask_url, problems_of
from modelyard.config.section import Flag, Integer, Number, Section, Text
from modelyard.config.spec import Autoscaling, ModelSpec, Resources, check_framework
from modelyard.errors import InvalidConfig

_SQLITE = "sqlite:///"
_POSTGRESQL = ("postgresql://", "postgresql+psycopg://")


class CatalogConfig(Section):
    """Where the platform keeps what it must not forget."""

    url: Text = Field(
        default="sqlite:///state/modelyard.db",
        description="Database of models, revisions, traffic and events, as an SQLAlchemy URL: a file, or a PostgreSQL "
        "database of its own (`postgresql://user:password@host/db`). A relative SQLite path counts from the platform's "
        "working directory; its folder is made where missing.",
    )
    keep_events: Integer = Field(
        default=100_000,
        ge=1000,
        description="So many events of the history are kept, the newest of all models together; for a while some more.",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        is_file = value.startswith(_SQLITE) and value.removeprefix(_SQLITE) not in ("", ":memory:")
        if not is_file and not value.startswith(_POSTGRESQL):
            expected = "sqlite:/// and the path of a file, or postgresql://user:password@host/db"
            raise ValueError(f'expected {expected}, got "{mask_url(value)}"')
        return value


class CloudEventsConfig(Section):
    """How requests that come as CloudEvents are answered."""

    response_type: Text = Field(
        default="io.kserve.inference.response", min_length=1, description="The attribute `type` of replies."
    )
    response_source: Text | None = Field(
        default=None,
        min_length=1,
        description="The attribute `source` of replies; left out, `io.kserve.inference.` and the model's name.",
    )
    merge_attributes: Flag = Field(
        default=False,
        description="Replies take over the request's other attributes (subject, extensions); id and time are always "
        "new.",
    )


class IngressConfig(Section):
    """The deployment that answers HTTP and gRPC."""

    num_replicas: Integer = Field(
        default=1, ge=1, description="Ingress processes; more spread decoding and encoding over more CPUs."
    )
    num_cpus: Number = Field(default=0.25, ge=0, description="CPUs one ingress process reserves in the cluster.")
    node_labels: dict[str, Text] = Field(
        default_factory=dict,
        description="Only nodes with these labels run the ingress and the controller, as for a model's "
        "`resources.node_labels`: it keeps them off nodes with GPUs, which could not be taken away then.",
    )
    max_body_bytes: Integer = Field(
        default=64 * 1024 * 1024,
        ge=1,
        description="Largest request body, after decompression, and largest sum of a gRPC request's tensors; a larger "
        "one is refused with 413 or RESOURCE_EXHAUSTED.",
    )
    compression_min_bytes: Integer | None = Field(
        default=1024,
        ge=1,
        description="Replies from this many bytes on are compressed (gzip or deflate) for clients that say they take "
        "it; null never compresses. Compressed requests are read in any case.",
    )
    cloudevents: CloudEventsConfig = Field(
        default=CloudEventsConfig(), description="How requests that come as CloudEvents are answered."
    )
    max_inflight_per_model: Integer = Field(
        default=1000,
        ge=1,
        description="Requests to one model that one ingress process holds at once; the next is refused with 429, so "
        "a stuck model cannot take the others' share.",
    )
    drain_timeout_s: Number | None = Field(
        default=None,
        gt=0,
        description="Seconds that an ingress process which stops has for the requests that it has accepted; left out, "
        "the longest `limits.request_timeout_s` of the declared models, and at least 60.",
    )
    keep_alive_s: Number = Field(
        default=15.0,
        gt=0,
        description="Seconds that an open stream of the OpenAI protocol may be silent, for example while a long prompt "
        "is read; then a comment, which clients skip, keeps the connections on the way open.",
    )
    load_timeout_s: Number = Field(
        default=600.0,
        gt=0,
        description="Seconds a v2 repository request waits until the model is loaded (or no longer routed to) before "
        "it is answered with 504, unless the client gives a deadline of its own; the change goes on.",
    )


class ControllerConfig(Section):
    """The deployment that turns the catalog into running models."""

    num_cpus: Number = Field(default=0.0, ge=0, description="CPUs the controller process reserves in the cluster.")
    reconcile_interval_s: Number = Field(
        default=2.0,
        gt=0,
        description="Seconds between two comparisons of what should run with what runs; a change through the platform "
        "is acted on at once.",
    )
    place_timeout_s: Number = Field(
        default=30.0,
        ge=0,
        description="Seconds from its start after which declared models that no node has room for no longer keep the "
        "platform from being ready. As long as a node may take to come, where an upgrade is to wait for nodes.",
    )
    version_poll_interval_s: Number = Field(
        default=1.0,
        gt=0,
        description="Seconds between two looks for new and removed version folders. A folder that appears is served "
        "once two looks in a row have found the same files in it.",
    )


class PoolsConfig(Section):
    """Where shared models live: one pool for each framework and runtime that any of them has, all alike."""

    memory_mb: Integer = Field(
        default=1024,
        ge=1,
        description="Memory that the process of a replica takes at most, in MiB, itself included: the least recently "
        "used models leave it. While a model loads it may take as much more as that model.",
    )
    resources: Resources = Field(
        default=Resources(), description="What each replica of a pool reserves in the cluster; no GPUs."
    )
    autoscaling: Autoscaling = Field(
        default=Autoscaling(),
        description="How many replicas a pool has, at least one, and when that changes. Each model lives in one of "
        "those on a node.",
    )

    @model_validator(mode="after")
    def _check_kind(self) -> PoolsConfig:
        if self.resources.num_gpus:
            raise ValueError(f"resources.num_gpus: expected 0, got {self.resources.num_gpus:g}")
        if not self.autoscaling.min_replicas:
            raise ValueError("autoscaling.min_replicas: expected at least 1, got 0")
        if any(window.min_replicas == 0 for window in self.autoscaling.schedule):
            raise ValueError("autoscaling.schedule: expected min_replicas of at least 1, got 0")
        return self


class SecurityConfig(Section):
    """What the platform refuses for safety's sake."""

    model_roots: tuple[str, ...] = Field(
        default=(".",),
        min_length=1,
        description="Folders from which formats that can run code while loading (pickle, joblib) may be loaded; "
        "relative ones count from the platform's working directory. The URL of a store, `s3://bucket/models`, allows "
        "what is below it. Other formats load from anywhere.",
    )


class PlatformConfig(Section):
    """Everything one platform is told at its start."""

    catalog: CatalogConfig = Field(default=CatalogConfig(), description="Where models and their history are kept.")
    models: tuple[ModelSpec, ...] = Field(
        default=(),
        description="Models declared in this file. They are set up at start, and those no longer listed are removed; "
        "models registered at run time are left alone.",
    )
    ingress: IngressConfig = Field(default=IngressConfig(), description="The processes that answer HTTP and gRPC.")
    controller: ControllerConfig = Field(default=ControllerConfig(), description="The process that runs the models.")
    autoscaling_policies: dict[Text, Text] = Field(
        default_factory=dict,
        description="Functions of yours that say how many replicas a model gets, `module:name` by the name that "
        "models use (`autoscaling.policy`). They run in Ray Serve's own controller, several times a second: see "
        "docs/scaling.md.",
    )
    pools: PoolsConfig = Field(default=PoolsConfig(), description="Where models with `shared: true` live.")
    security: SecurityConfig = Field(default=SecurityConfig(), description="What is refused for safety's sake.")

    _check_names = field_validator("models")(check_different)


def check_policy(scaling: Autoscaling, policies: Mapping[str, str], where: str = "") -> tuple[str, ...]:
    """What is wrong with the policy that a model names, as sentences; empty when nothing is.

    Args:
        scaling: Of the model.
        policies: The platform's.
        where: Path of the model inside the whole, ``models[2]``.
    """
    if scaling.policy is None or scaling.policy in policies:
        return ()
    known = (
        f"one of {', '.join(sorted(policies))}" if policies else "none, for the platform has no autoscaling_policies"
    )
    return (f'{join_path(where, "autoscaling", "policy")}: expected {known}, got "{scaling.policy}"',)


def load_platform_config(args: Mapping[str, Any]) -> PlatformConfig:
    """The platform's configuration, with every model's framework and options checked.

    Args:
        args: The application's ``args``.

    Raises:
        InvalidConfig: With one problem for each key that is wrong, ``models[2].autoscaling.min_replicas: …``.
    """
    try:
        config = PlatformConfig.model_validate(args)
    except ValidationError as exc:
        raise InvalidConfig(problems_of(exc, PlatformConfig)) from exc
    policies = config.autoscaling_policies
    problems = tuple(
        problem
        for index, spec in enumerate(config.models)
        for where in (join_path("models", index),)
        for problem in (
            *check_framework(spec, where),
            *check_policy(spec.autoscaling, policies, where),
        )
    )
    problems += check_policy(config.pools.autoscaling, policies, "pools")
    if problems:
        raise InvalidConfig(problems)
    return config
