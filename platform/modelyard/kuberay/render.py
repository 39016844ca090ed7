# SPDX-License-Identifier: Apache-2.0
"""A RayService for a Serve file: an overlay's, with worker groups as large as the file's models need.

The same input gives the same bytes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from modelyard.config import IMPORT_PATH, ModelSpec, PlatformConfig, load_platform_config
from modelyard.config.problems import join_path
from modelyard.errors import InvalidConfig
from modelyard.kuberay import groups
from modelyard.kuberay.groups import Group, Size
from modelyard.kuberay.kustomization import ENVIRONMENT, RENDERED, groups_of
from modelyard.kuberay.needs import Need, count_nodes, find_needs
from modelyard.kuberay.overlays import Overlay, load_overlay
from modelyard.kuberay.serving import EVERY_NODE, GRPC_PORT, HTTP_PORT

_INGRESS: Final = "Ingress"
_LABEL: Final = "modelyard-group"
"""Of the nodes that are no place for what every request passes, and of those that are."""
_REQUEST_MARGIN_S: Final = 60
PLACE_TIMEOUT_S: Final = 900
"""How long a cluster waits for nodes of models that have no place: an upgrade would switch to it without them."""
_DRAIN: Final = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_REPLACEMENT_S: Final = 50
"""What another replica has to be there before this one stops, with the time that the ingress stops earlier."""
_NUMERIC: Final = tuple("0123456789+-.")
_STORES: Final = {"s3": "object-store", "gs": "object-store", "az": "object-store", "abfs": "object-store"}
"""The component for models at such a place; the others want no keys."""
_WEB: Final = ("hf", "http", "https")
_POSTGRESQL_PORT: Final = 5432
_HTTPS_PORT: Final = 443


@dataclass(frozen=True, slots=True)
class Choices:
    """What is not in the Serve file.

    Attributes:
        overlay: Which of ``kuberay/overlays``.
        name: Of the RayService.
        image: Of all pods; empty for the overlay's.
        cpu_worker: Size of a worker without GPUs.
        gpu_worker: Size of one with them.
        selectors: By name of a group, the labels of nodes it has to be on.
    """

    overlay: str = "cpu"
    name: str = "modelyard"
    image: str = ""
    cpu_worker: Size = field(default_factory=Size)
    gpu_worker: Size = field(default_factory=Size)
    selectors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What has come out.

    Attributes:
        service: The RayService.
        warnings: What would not work, or not as it is meant, one sentence each.
    """

    service: Mapping[str, Any]
    warnings: tuple[str, ...]

    def to_yaml(self) -> str:
        """The manifest as a file."""
        text = yaml.dump(dict(self.service), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        return RENDERED + text


def render(document: Mapping[str, Any], choices: Choices) -> Rendered:
    """Makes the RayService.

    Args:
        document: A Serve file's contents, which Serve accepts.
        choices: The rest.

    Raises:
        InvalidConfig: With one problem for each key that is wrong.
    """
    overlay = load_overlay(choices.overlay)
    service = overlay.service
    cluster = service["spec"]["rayClusterConfig"]
    templates: list[Group] = cluster.get("workerGroupSpecs", [])
    file, config = _to_cluster(document, templates)
    needs = find_needs(config)
    workers = list(_make_groups(templates, needs, choices))
    if workers:
        cluster["workerGroupSpecs"] = workers
    places = workers or [cluster["headGroupSpec"]]
    assigned = groups.assign(needs, places)
    for group, own in zip(workers, assigned, strict=False):
        groups.set_replicas(group, own, 0 if groups.has_gpus(group) else config.ingress.num_replicas)
    _name_pods(service, overlay, choices)
    _fill_in(service, file, config, choices)
    warnings = [*_warn_of_file(document, config, overlay, choices), *_warn_of_ways_out(config, overlay)]
    warnings += _warn_of_places(needs, places, assigned)
    warnings += _warn_of_nodes(workers, choices) if workers else _warn_of_room(places[0], needs)
    return Rendered(service, tuple(warnings))


def _fill_in(service: dict[str, Any], file: Mapping[str, Any], config: PlatformConfig, choices: Choices) -> None:
    service["metadata"]["name"] = choices.name
    spec = service["spec"]
    spec["serveConfigV2"] = yaml.dump(file, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    longest_s = max((model.limits.request_timeout_s for model in config.models), default=0)
    delay = "rayClusterDeletionDelaySeconds"
    spec[delay] = max(spec[delay], math.ceil(longest_s) + _REQUEST_MARGIN_S)


def _to_cluster(document: Mapping[str, Any], workers: Sequence[Group]) -> tuple[dict[str, Any], PlatformConfig]:
    """The Serve file as it has to be in pods, and the platform's configuration in it.

    Args:
        document: As it is on a machine.
        workers: The overlay's groups; without any the ingress is where everything is.
    """
    file = copy.deepcopy(dict(document))
    # Whoever asks comes from outside of the pod; the ports are those of the overlay's Service.
    file["http_options"] = {**file.get("http_options", {}), "host": "0.0.0.0", "port": HTTP_PORT}  # noqa: S104
    if "proxy_location" in file:
        file["proxy_location"] = EVERY_NODE
    if "grpc_options" in file:
        file["grpc_options"] = {**file["grpc_options"], "port": GRPC_PORT}
    found = [item for item in file["applications"] if item.get("import_path") == IMPORT_PATH]
    if len(found) != 1:
        raise InvalidConfig((f"applications: expected one with import_path: {IMPORT_PATH}, got {len(found)}",))
    if workers:
        arguments = found[0].setdefault("args", {})
        arguments["controller"] = {"place_timeout_s": PLACE_TIMEOUT_S, **arguments.get("controller", {})}
    (application,) = found
    args = application.setdefault("args", {})
    if workers:
        least = min((group["minReplicas"] for group in workers if not groups.has_gpus(group)), default=1)
        config = load_platform_config(args)
        args["ingress"] = {**_place_of_ingress(config, workers), **args.get("ingress", {})}
        args["ingress"]["num_replicas"] = max(least, config.ingress.num_replicas)
        where = join_path("applications", file["applications"].index(application), "deployments")
        _spread_ingress(application, args["ingress"]["num_replicas"], where)
    return file, load_platform_config(args)


def _place_of_ingress(config: PlatformConfig, workers: Sequence[Group]) -> Mapping[str, Any]:
    """Not beside models with GPUs: a node that anything else runs on is never idle, and is paid for."""
    others = [group for group in workers if not groups.has_gpus(group)]
    if len(others) == len(workers) or not any(need.is_accelerated for need in find_needs(config)):
        return {}
    labels = {value for group in others for key, value in group.get("labels", {}).items() if key == _LABEL}
    return {"node_labels": {_LABEL: min(labels)}} if labels else {}


def _spread_ingress(application: dict[str, Any], replicas: int, where: str) -> None:
    """Each process on a node of its own, in place."""
    deployments = application["deployments"] = application.get("deployments") or []
    own = next((item for item in deployments if item.get("name") == _INGRESS), None)
    if own is None:
        own = {"name": _INGRESS}
        deployments.append(own)
    for key in ("num_replicas", "autoscaling_config"):
        if key in own:  # it would count instead of the platform's
            path = join_path(where, deployments.index(own), key)
            raise InvalidConfig((f"{path}: expected nothing: args.ingress.num_replicas says how many there are",))
    own.setdefault("max_replicas_per_node", 1)
    own.setdefault("max_surge_percent", math.ceil(100 / replicas))


def _make_groups(templates: Sequence[Group], needs: Sequence[Need], choices: Choices) -> Iterator[Group]:
    accelerated = [need for need in needs if need.is_accelerated]
    for template in templates:
        is_for_gpus = groups.has_gpus(template)
        group = groups.resize(template, choices.gpu_worker if is_for_gpus else choices.cpu_worker)
        if not is_for_gpus:
            yield group
        elif accelerated:
            yield from groups.split_by_accelerator(group, accelerated)


def _name_pods(service: dict[str, Any], overlay: Overlay, choices: Choices) -> None:
    """Image, environment and nodes of every pod, in place."""
    environment = [{"name": name, "value": value} for name, value in overlay.environment.items()]
    for group in groups_of(service):
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        container["image"] = choices.image or container["image"]
        container["env"] = [*environment, *container.get("env", ())]
        # The ConfigMap with the same in it has a name that only Kustomize knows.
        sources = container.pop("envFrom", ())
        if sources := [item for item in sources if item.get("configMapRef", {}).get("name") != ENVIRONMENT]:
            container["envFrom"] = sources
        if selector := choices.selectors.get(group.get("groupName", "")):
            pod["nodeSelector"] = {**pod.get("nodeSelector", {}), **selector}


def _warn_of_file(
    document: Mapping[str, Any], config: PlatformConfig, overlay: Overlay, choices: Choices
) -> Iterator[str]:
    location = document.get("proxy_location", EVERY_NODE)
    if location != EVERY_NODE:
        yield f"proxy_location: {EVERY_NODE} instead of {location}: a pod without a proxy is never ready"
    before = next(item for item in document["applications"] if item.get("import_path") == IMPORT_PATH)
    given = (before.get("args") or {}).get("ingress", {}).get("num_replicas", 1)
    if given != config.ingress.num_replicas:
        yield (
            f"ingress.num_replicas: {config.ingress.num_replicas} instead of {given}: it has to go on while one of its "
            "nodes is away"
        )
    stay = overlay.pods_that_stay(groups.CPU)
    if stay is not None and stay < config.ingress.num_replicas - 1:
        yield (
            f"ingress.num_replicas: {config.ingress.num_replicas}, and evictions may leave {stay} pods of the group "
            f"{groups.CPU}: minAvailable: {config.ingress.num_replicas - 1} in an overlay of yours lets one go at once"
        )
    if config.catalog.url.startswith("sqlite") and choices.overlay != "dev":
        yield (
            "catalog.url: a file in a pod: what is registered at run time goes with it; a database keeps it "
            "(postgresql://…)"
        )
    drain_s = overlay.environment.get(_DRAIN, "")
    for index, model in enumerate(config.models):
        longest_s = model.limits.request_timeout_s
        if drain_s.isdecimal() and longest_s + _REPLACEMENT_S > int(drain_s):
            yield (
                f"models[{index}].limits.request_timeout_s: {longest_s:g}, and a pod that stops has {drain_s} s: its "
                "replicas would stop before others have taken their place (kuberay/components/long-requests)"
            )
    if choices.image and "@sha256:" not in choices.image:
        yield "--image: a tag may be moved, and pods that start later would run something else: NAME@sha256:… cannot"


def _warn_of_ways_out(config: PlatformConfig, overlay: Overlay) -> Iterator[str]:
    """What pods have to reach, and no NetworkPolicy of the overlay lets them."""
    url = config.catalog.url
    if not url.startswith("sqlite") and not overlay.lets_out(_port(url, _POSTGRESQL_PORT)):
        yield f"catalog.url: {_no_way(_port(url, _POSTGRESQL_PORT), 'fault-tolerance')}, with the Secret"
    for index, model in enumerate(config.models):
        scheme, separator, _ = model.uri.partition("://")
        if separator and scheme in (*_STORES, *_WEB):
            port = _port(model.uri, 80) if scheme == "http" else _port(model.uri, _HTTPS_PORT)
            if not overlay.lets_out(port):
                yield f"models[{index}].uri: {_no_way(port, _STORES.get(scheme, 'https-out'))}"
        if _installs(model) and not overlay.lets_out(_HTTPS_PORT):
            yield f"models[{index}].runtime: {_no_way(_HTTPS_PORT, 'https-out')}"


def _no_way(port: int, component: str) -> str:
    return f"the overlay lets no pod out to port {port}: kuberay/components/{component} does"


def _installs(model: ModelSpec) -> bool:
    """Whether an environment is made for it, of packages that somebody has."""
    runtime = model.runtime
    return bool(runtime.version or runtime.pip or runtime.uv or isinstance(runtime.conda, dict))


def _port(url: str, usual: int) -> int:
    try:
        return urlsplit(url).port or usual
    except ValueError:  # a password may have what no address has
        return usual


def _warn_of_places(
    needs: Sequence[Need], places: Sequence[Group], assigned: Sequence[Sequence[Need]]
) -> Iterator[str]:
    placed = [need for own in assigned for need in own]
    for need in needs:
        if need not in placed:
            what = f"accelerator_type {need.accelerator_type}" if need.accelerator_type else "num_gpus"
            yield f"{need.path}: {need.name} can never run: no group has {what}"
    for group, own in zip(places, assigned, strict=True):
        for need in own:
            if reason := groups.misfit(need, group):
                yield f"{need.path}: {need.name} can never run: {reason} (group {group.get('groupName', 'head')})"
            elif need.is_accelerated and "numOfHosts" not in group and (pods := groups.spreads(need, group)) > 1:
                yield (
                    f"{need.path}: {need.name}: a replica spreads over {pods} pods of the group "
                    f"{group.get('groupName', 'head')}, which come and go one by one: --gpu-worker-gpus "
                    f"{need.total('GPU'):g} makes them one, and those of --overlay llm stay together"
                )


def _warn_of_room(head: Group, needs: Sequence[Need]) -> Iterator[str]:
    """Where everything is in one pod."""
    node = groups.capacity(head)
    fitting = [need for need in needs if not groups.misfit(need, head)]
    if count_nodes([(bundle, need.least) for need in fitting for bundle in need.bundles], node) > 1:
        wanted = groups.describe("CPU", sum(need.total("CPU") * need.least for need in fitting))
        there = groups.describe("CPU", node["CPU"])
        yield f"models: not all can run at once: they and the ingress need {wanted}, and the one pod has {there}"


def _warn_of_nodes(workers: Sequence[Group], choices: Choices) -> Iterator[str]:
    accelerated = sum(map(groups.has_gpus, workers))
    for group in workers:
        name = group["groupName"]
        is_any = "nodeSelector" in group["template"]["spec"] or not groups.has_gpus(group)
        # Ray believes what a group says of itself, so on other nodes its models would run all the same.
        if not is_any and (groups.has_type(group) or accelerated > 1):
            yield f"--node-selector: nothing says which nodes the pods of {name} have to be on: {name}:LABEL=VALUE does"
    for name in sorted(set(choices.selectors) - {group["groupName"] for group in workers}):
        yield f"--node-selector: there is no group {name}"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # What PyYAML takes for a text, Go's YAML may take for a number or a truth: 1e3, y.
    is_ambiguous = text[:1] in _NUMERIC or text in ("y", "n", "Y", "N")
    style = "|" if "\n" in text else "'" if is_ambiguous else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
