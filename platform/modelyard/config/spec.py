# SPDX-License-Identifier: Apache-2.0
"""One model as a user describes it, in the configuration file, over the admin API or in Python.

The framework, its options, the artifact's location and the runtime make a *revision*; everything else is a
setting that is applied to the running model in place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final, Literal, TypeVar
from zoneinfo import available_timezones

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from modelyard.config.problems import join_path, problems_of
from modelyard.config.runtime import Runtime
from modelyard.config.section import Flag, Integer, Number, Reference, Section, Text
from modelyard.config.versions import VersionPolicy
from modelyard.errors import InvalidConfig
from modelyard.model import get_framework
from modelyard.scaling import DAYS, Bounds, Targets
from modelyard.scaling import Window as Hours

_HOUR: Final = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


class Batching(Section):
    """How a replica merges waiting requests into one call of the model."""

    max_batch_size: Integer = Field(
        default=64,
        ge=1,
        description="Rows in one call of the model at most; 1 turns merging off. A single request with more rows "
        "still runs, alone.",
    )
    batch_wait_timeout_s: Number = Field(
        default=0.0,
        ge=0,
        le=60,
        description="Seconds a request waits for others to share its call. 0 adds no wait: requests that arrive "
        "while a call runs go together in the next one.",
    )
    report_batch_id: Flag = Field(
        default=False,
        description="Replies to v1 `:predict` begin with `message` and `batchId`, as those of KServe's batcher: "
        "requests that were predicted in one call have the same batchId.",
    )


class Window(Section):
    """Hours in which other bounds of the number of replicas hold."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(
        default=DAYS, min_length=1, description="Days on which it begins: `mon` to `sun`. Left out, all of them."
    )
    start: Text = Field(pattern=_HOUR, description="When it begins: `08:00`.")
    end: Text = Field(pattern=_HOUR, description="When it ends: `20:00`; not later than `start` means on the next day.")
    timezone: Text = Field(default="UTC", description="Where these hours are, by IANA name: `Europe/Berlin`.")
    min_replicas: Integer | None = Field(
        default=None, ge=0, description="Replicas at least while it is open; left out, as at other times."
    )
    max_replicas: Integer | None = Field(
        default=None,
        ge=1,
        description="Replicas at most while it is open; left out, as at other times, but at least min_replicas.",
    )

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f'expected the IANA name of a timezone, as "Europe/Berlin", got "{value}"')
        return value

    @model_validator(mode="after")
    def _check_order(self) -> Window:
        if self.min_replicas is not None and self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"expected max_replicas >= min_replicas, got max_replicas {self.max_replicas} and "
                f"min_replicas {self.min_replicas}"
            )
        return self


class Autoscaling(Section):
    """How many replicas a model has, and when that changes."""

    min_replicas: Integer = Field(
        default=1,
        ge=0,
        description="Replicas that always run. With 0 a model that nobody asks stops, and the next request starts it "
        "again and waits for it; a new revision starts once all the same, to see whether it loads.",
    )
    max_replicas: Integer = Field(
        default=1,
        ge=1,
        description="Replicas at most; equal to min_replicas it pins their number. Left out, it is min_replicas.",
    )
    initial_replicas: Integer | None = Field(
        default=None, ge=1, description="Replicas a new revision starts with; left out, min_replicas, but at least one."
    )
    target_ongoing_requests: Number | None = Field(
        default=None,
        gt=0,
        description="Requests in flight per replica that scaling aims for; more adds replicas, fewer takes them "
        "away. Left out, it is half of what a replica takes at once (limits.max_ongoing_requests).",
    )
    target_requests_per_s: Number | None = Field(
        default=None,
        gt=0,
        description="Requests a second per replica that scaling aims for too; whichever target asks for more replicas "
        "counts.",
    )
    target_queue_ms: Number | None = Field(
        default=None,
        gt=0,
        description="Milliseconds that requests wait on average before they are predicted, in the ingress and in the "
        "replica; the number of replicas changes by as much as that is off.",
    )
    target_latency_ms: Number | None = Field(
        default=None, gt=0, description="Milliseconds that requests take on average, waiting included; as above."
    )
    target_tokens_per_s: Number | None = Field(
        default=None, gt=0, description="Tokens that each replica of a language model generates in a second."
    )
    target_cpus: Number | None = Field(
        default=None, gt=0, description="CPUs that each replica uses, whatever it reserves; 0.8 is most of one."
    )
    target_gpu_percent: Number | None = Field(
        default=None,
        gt=0,
        le=100,
        description="How busy the replicas' GPUs are on average, in percent; as for target_queue_ms. For models whose "
        "replicas have whole GPUs.",
    )
    target_metrics: dict[Text, Number] = Field(
        default_factory=dict,
        max_length=20,
        description="Numbers that the model itself reports (`report_load` of its class), by name, for each replica.",
    )
    schedule: tuple[Window, ...] = Field(
        default=(), max_length=50, description="Hours in which other bounds hold; the first that is open counts."
    )
    policy: Text | None = Field(
        default=None,
        description="Name of a policy of the platform's (`autoscaling_policies`), which has the last word within the "
        "bounds.",
    )
    upscale_delay_s: Number = Field(
        default=3.0, ge=0, description="Seconds the load must stay above the target before replicas are added."
    )
    downscale_delay_s: Number = Field(
        default=60.0, ge=0, description="Seconds the load must stay below the target before replicas are taken away."
    )
    downscale_to_zero_delay_s: Number = Field(
        default=300.0, ge=0, description="Seconds without a request before the last replica stops."
    )
    standby: Flag = Field(
        default=False,
        description="With min_replicas 0: while no replica runs, the pool of its framework (`pools` of the platform's "
        "configuration) loads the model and answers, until a replica of its own has started. A request that wakes a "
        "small model then waits some milliseconds instead of seconds.",
    )

    @model_validator(mode="before")
    @classmethod
    def _max_follows_min(cls, data: Any) -> Any:
        """``min_replicas: 3`` alone means three replicas, not an error about the other key's default."""
        if isinstance(data, Mapping) and "max_replicas" not in data and type(data.get("min_replicas")) is int:
            return {**data, "max_replicas": max(1, data["min_replicas"])}
        return data

    @model_validator(mode="after")
    def _check_order(self) -> Autoscaling:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"expected max_replicas >= min_replicas, got max_replicas {self.max_replicas} and "
                f"min_replicas {self.min_replicas}"
            )
        if self.standby and self.min_replicas:
            raise ValueError(
                f"standby: expected false where a replica always runs, got min_replicas {self.min_replicas}"
            )
        if any(target <= 0 for target in self.target_metrics.values()):
            raise ValueError(f"target_metrics: expected numbers > 0, got {self.target_metrics}")
        if self.initial_replicas is not None and not self.min_replicas <= self.initial_replicas <= self.max_replicas:
            raise ValueError(
                f"expected initial_replicas between {self.min_replicas} and {self.max_replicas} (min_replicas and "
                f"max_replicas), got {self.initial_replicas}"
            )
        return self

    def to_targets(self, ongoing_requests: float) -> Targets:
        """What each replica is to have.

        Args:
            ongoing_requests: In flight, where this does not say.
        """
        return Targets(
            in_flight=self.target_ongoing_requests or ongoing_requests,
            requests_per_s=self.target_requests_per_s,
            queue_ms=self.target_queue_ms,
            latency_ms=self.target_latency_ms,
            tokens_per_s=self.target_tokens_per_s,
            cpus=self.target_cpus,
            gpu_percent=self.target_gpu_percent,
            own=self.target_metrics,
        )

    def to_bounds(self) -> Bounds:
        """Between what the number of replicas stays, now and then."""
        return Bounds(self.min_replicas, self.max_replicas, tuple(self._to_hours(window) for window in self.schedule))

    def _to_hours(self, window: Window) -> Hours:
        most = self.max_replicas if window.max_replicas is None else window.max_replicas
        least = min(self.min_replicas, most) if window.min_replicas is None else window.min_replicas
        return Hours(window.days, window.start, window.end, window.timezone, least, max(least, most))


_RESERVED_RESOURCES: Final[Mapping[str, str]] = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "memory_mb",
    "object_store_memory": "memory_mb",
}


class Resources(Section):
    """What one replica reserves in the cluster; it starts only where that much is free."""

    num_cpus: Number = Field(
        default=0.25,
        ge=0,
        description="CPUs one replica reserves. This decides placement only; it does not limit what the model uses.",
    )
    num_gpus: Number = Field(
        default=0.0,
        ge=0,
        description="GPUs one replica reserves: a fraction shares one device, above 1 it must be a whole number.",
    )
    memory_mb: Integer | None = Field(
        default=None, ge=1, description="Memory one replica reserves, in MiB; left out, none is reserved."
    )
    accelerator_type: Text | None = Field(
        default=None,
        min_length=1,
        description="Only nodes with this accelerator are used, by Ray's name (`L4`, `H100`).",
    )
    node_labels: dict[str, Text] = Field(
        default_factory=dict,
        description="Only nodes with these labels are used: values as Ray's label selectors have them, `eu-1`, "
        "`!spot`, `in(a,b)`. Ray's own labels count too; `ray.io/node-id` names one node.",
    )
    custom: dict[str, Number] = Field(
        default_factory=dict, description="Amounts of the cluster's own resources one replica reserves, by name."
    )

    @field_validator("num_gpus")
    @classmethod
    def _check_whole_gpus(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(f"expected a fraction up to 1 or a whole number, got {value:g}")
        return value

    @field_validator("custom")
    @classmethod
    def _check_custom(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if name in _RESERVED_RESOURCES:
                raise ValueError(f'expected a resource of your own, got "{name}": use {_RESERVED_RESOURCES[name]}')
            if amount <= 0:
                raise ValueError(f'expected an amount > 0 for "{name}", got {amount:g}')
        return value


class Limits(Section):
    """What one model may hold up before it says no."""

    max_ongoing_requests: Integer | None = Field(
        default=None,
        ge=1,
        description="Requests one replica works on at once, waiting in its batch queue included. Left out, it is "
        "twice batching.max_batch_size and at least 16, so that the next batch fills while one runs.",
    )
    max_queued_requests: Integer = Field(
        default=1000,
        ge=0,
        description="Requests that may wait for a replica of this model; the next one is refused with 429 and "
        "Retry-After. 0 refuses whatever no replica can take at once.",
    )
    load_timeout_s: Number = Field(
        default=600.0,
        gt=0,
        description="Seconds a replica may take to load the model, from when it has its place in the cluster; then the "
        "revision has failed.",
    )
    request_timeout_s: Number = Field(
        default=60.0,
        gt=0,
        description="Seconds a request to this model may take, waiting included, before it is answered with 504. A "
        "client's own shorter deadline wins.",
    )


class Gates(Section):
    """What has to hold for a rollout to go on; where one does not, the revision loses its traffic again."""

    error_rate: Number | None = Field(
        default=None, ge=0, le=1, description="Faults of the server among the new revision's requests at most, 0 to 1."
    )
    p99_ms: Number | None = Field(
        default=None, gt=0, description="Milliseconds within which 99 of 100 requests to the new revision are answered."
    )
    shadow_mismatch: Number | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Different answers at most, 0 to 1. It gets copies of the requests that the others answer until it "
        "has all traffic itself.",
    )


class RolloutPolicy(Section):
    """How a new revision gets its traffic."""

    steps: tuple[Number, ...] = Field(
        default=(100.0,),
        max_length=100,
        description="Percent of the traffic, one step after the other. Left out, a new revision gets all of it as soon "
        "as it is ready. Without any (`[]`) it runs dark until it is promoted; without 100 at the end it stays at its "
        "last step until then.",
    )
    interval_s: Number = Field(default=60.0, ge=0, description="Seconds each step takes at least.")
    min_requests: Integer = Field(
        default=100,
        ge=1,
        description="Requests each step has to see before its gates can be said to hold; they fail as soon as so many "
        "are sure not to.",
    )
    gates: Gates = Field(default=Gates(), description="What has to hold for it to go on.")

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= step <= 100 or abs(step * 10 - round(step * 10)) > 1e-6 for step in steps):
            raise ValueError(f"expected percents from 0 to 100, in steps of 0.1, got {list(steps)}")
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise ValueError(f"expected each step to be higher than the last, got {list(steps)}")
        return steps


class RolloutPlan(RolloutPolicy):
    """A rollout of one revision, as somebody asks for it at run time."""

    to: Reference = Field(description="The revision, by number or label.")


def merge_rollout(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A rollout as somebody asks for it at run time, not checked yet.

    Args:
        own: The model's ``rollout``.
        given: What differs from it; of ``gates`` each by itself.
    """
    merged = {**own, **given}
    gates = own.get("gates"), given.get("gates")
    if isinstance(gates[0], Mapping) and isinstance(gates[1], Mapping):
        merged["gates"] = {**gates[0], **gates[1]}
    return merged


class ShadowPlan(Section):
    """Copies of requests for another revision, as somebody asks for them at run time."""

    revision: Reference = Field(description="Which one gets them, by number or label.")
    percent: Number = Field(default=100.0, gt=0, le=100, description="Of the requests that are copied.")
    tolerance: Number = Field(
        default=1e-5, ge=0, description="Numbers that differ by so much, relatively or absolutely, are the same."
    )


class TrafficPlan(Section):
    """Where the traffic of a model is to go, as somebody asks for it at run time."""

    weights: dict[Text, Number] | None = Field(
        default=None, min_length=1, description="Percent by revision, number or label: tenths, 100 in sum."
    )
    shadow: ShadowPlan | None = Field(default=None, description="Which revision gets copies; null for none.")


class ModelSpec(Section):
    """One model: where it is, what loads it, how it runs."""

    name: Text = Field(
        pattern=NAME_PATTERN,
        description="Name of the model in every protocol and URL: 1 to 63 letters, digits, `.`, `_` and `-`, "
        "beginning with a letter or digit.",
    )
    framework: Text = Field(
        min_length=1, max_length=100, description="Name of the framework that loads it, for example `sklearn`."
    )
    uri: Text = Field(
        default="",
        max_length=4096,
        description="Where the artifact is: a path or `file://` URL of a file or directory, or what an object store, "
        "the Hugging Face hub or a web server has: `s3://bucket/models/churn`, `gs://`, `az://`, `hf://owner/model`, "
        "`https://`. A relative path counts "
        "from the platform's working directory, also when a client on another machine registers it. For frameworks "
        "that reach models elsewhere also their URL, `grpc://triton:8001`. Left out where the framework's models have "
        "no artifact, as a pipeline.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the framework, checked against what it takes."
    )
    version_policy: VersionPolicy | None = Field(
        default=None,
        description="Which of the artifact's numeric folders are served, each as the version of its number; new ones "
        "are picked up while it runs. Left out, a folder that holds nothing but such folders serves the highest.",
    )
    batching: Batching = Field(default=Batching(), description="How waiting requests are merged into one call.")
    autoscaling: Autoscaling = Field(default=Autoscaling(), description="How many replicas run, and when that changes.")
    resources: Resources = Field(default=Resources(), description="What each replica reserves in the cluster.")
    limits: Limits = Field(default=Limits(), description="What the model may hold up before it refuses requests.")
    runtime: Runtime = Field(default=Runtime(), description="What the replica processes run in.")
    rollout: RolloutPolicy = Field(default=RolloutPolicy(), description="How a new revision gets its traffic.")
    warmup: tuple[dict[str, Any], ...] = Field(
        default=(),
        max_length=100,
        description="Requests that a replica answers before it gets any others, as bodies of v1 `:predict` "
        "(`{instances: [[5.1, 3.5, 1.4, 0.2]]}`), or of `generate` for models that stream. A revision that does not "
        "answer them has failed.",
    )
    sticky: Text | None = Field(
        default=None,
        max_length=200,
        pattern=r"^(header|cookie):[A-Za-z0-9!#$%&'*+.^_`|~-]+$",
        description="Where requests say who they belong to, `header:x-user-id` or `cookie:session`: all with the same "
        "value there go to the same revision, as long as the weights let them. Over gRPC the metadata of that name.",
    )
    shared: Flag = Field(
        default=False,
        description="It lives in a pool, with others of its framework and runtime in one process, is loaded when it is "
        "asked for and leaves memory when others need it. What the pool's replicas reserve, and how many run, is "
        "`pools` of the platform's configuration; `resources` and `autoscaling` stay out.",
    )
    description: Text = Field(default="", description="What the model is for, shown to people; changes nothing.")

    @field_validator("shared")
    @classmethod
    def _check_shared(cls, value: bool, info: ValidationInfo) -> bool:
        for name, default in (("resources", Resources()), ("autoscaling", Autoscaling())):
            if value and info.data.get(name, default) != default:
                where = f"pools.{name}"
                raise ValueError(f"expected false for a model with {name}, got true: those are its pool's ({where})")
        return value

    @property
    def max_ongoing_requests(self) -> int:
        """Requests one replica takes at once: as set, or derived from the batch size."""
        return self.limits.max_ongoing_requests or max(16, 2 * self.batching.max_batch_size)

    @property
    def target_ongoing_requests(self) -> float:
        """Requests in flight per replica that scaling aims for: as set, or derived."""
        return self.autoscaling.target_ongoing_requests or self.max_ongoing_requests / 2

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values, with every default written out; what the catalog stores."""
        return self.model_dump(mode="json")

    def revision_content(self) -> dict[str, Any]:
        """What makes a revision, as JSON values: a change of any of it is a new revision."""
        content = self.model_dump(mode="json", include={"framework", "uri", "options", "runtime"})
        later = self.model_dump(mode="json", include={"warmup", "shared"})  # left out where they say nothing
        return content | {key: value for key, value in later.items() if value}

    def revision_digest(self, artifact_digest: str) -> str:
        """Identity of the revision: what the spec says of it and what the artifact holds.

        Args:
            artifact_digest: Digest of the artifact's contents, from the store.
        """
        content = json.dumps([self.revision_content(), artifact_digest], sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What is applied to the running model in place, as JSON values."""
        return self.model_dump(mode="json", include={"batching", "autoscaling", "resources", "limits"})


def check_framework(spec: ModelSpec, where: str = "") -> tuple[str, ...]:
    """What is wrong with the spec's framework, its options and its version, as sentences; empty when nothing is.

    Separate from the spec's shape because a client need not have the platform's frameworks installed.

    Args:
        spec: The model.
        where: Path of the spec inside the whole, ``models[2]``.
    """
    try:
        framework = get_framework(spec.framework)
    except InvalidConfig as exc:
        return tuple(f"{where}.{problem}" if where else problem for problem in exc.problems)
    problems: tuple[str, ...] = ()
    if spec.autoscaling.target_gpu_percent is not None and spec.resources.num_gpus < 1:
        path = join_path(where, "autoscaling", "target_gpu_percent")
        gpus = f"{spec.resources.num_gpus:g}"
        problems = (f"{path}: expected none for a model without GPUs of its own, got resources.num_gpus {gpus}",)
    if spec.runtime.version is not None and not framework.distribution:
        path = join_path(where, "runtime", "version")
        problems += (f'{path}: framework "{spec.framework}" has no library of its own: name yours in runtime.pip',)
    if spec.shared and not framework.may_share:
        problems += (
            f'{join_path(where, "shared")}: framework "{spec.framework}": its models need a process of their own',
        )
    if spec.autoscaling.standby and (not framework.may_share or spec.resources.num_gpus):
        what = "with GPUs" if framework.may_share else f'of framework "{spec.framework}"'
        problems += (f"{join_path(where, 'autoscaling', 'standby')}: models {what} need a process of their own",)
    if framework.has_artifact == (not spec.uri):
        expected = "a path or URL, got none" if framework.has_artifact else f'none, got "{spec.uri}"'
        problems += (f'{join_path(where, "uri")}: framework "{spec.framework}": expected {expected}',)
    try:
        framework.options.model_validate(spec.options)
    except ValidationError as exc:
        problems += problems_of(exc, framework.options, join_path(where, "options"))
    return problems


_S = TypeVar("_S", bound=Section)


def parse_section(section: type[_S], data: Mapping[str, Any]) -> _S:
    """One part of the configuration on its own.

    Raises:
        InvalidConfig: With one problem for each key that is wrong.
    """
    try:
        return section.model_validate(data)
    except ValidationError as exc:
        raise InvalidConfig(problems_of(exc, section)) from exc


def parse_model_spec(data: Mapping[str, Any]) -> ModelSpec:
    """The shape of a spec, without a look at its framework: what a client can check.

    Raises:
        InvalidConfig: With one problem for each key that is wrong.
    """
    return parse_section(ModelSpec, data)


def load_model_spec(data: Mapping[str, Any]) -> ModelSpec:
    """A spec whose framework is installed here and takes its options: what the platform checks.

    Raises:
        InvalidConfig: With one problem for each key that is wrong.
    """
    spec = parse_model_spec(data)
    problems = check_framework(spec)
    if problems:
        raise InvalidConfig(problems)
    return spec
