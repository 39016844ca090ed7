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

import yaml

from modelyard.config import IMPORT_PATH, PlatformConfig, load_platform_config
from modelyard.errors import InvalidConfig
from modelyard.kuberay import groups, overlays
from modelyard.kuberay.groups import Group, Size
from modelyard.kuberay.needs import Need, count_nodes, find_needs
from modelyard.kuberay.serving import GRPC_PORT, HTTP_PORT
from modelyard.version import __version__

_INGRESS: Final = "Ingress"
_REQUEST_MARGIN_S: Final = 60
PLACE_TIMEOUT_S: Final = 900
"""How long a cluster waits for nodes of models that have no place: an upgrade would switch to it without them."""
_DRAIN: Final = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_REPLACEMENT_S: Final = 50
"""What another replica has to be there before this one stops, with the time that the ingress stops earlier."""
_NUMERIC: Final = tuple("0123456789+-.")
_HEADER: Final = "# Made by `modelyard render kuberay`: change the platform file, and make it anew.\n"


@dataclass(frozen=True, slots=True)
class Choices:
    """What is not in the Serve file.

    Attributes:
        overlay: Which of ``kuberay/overlays``.
        name: Of the RayService.
        image: Of all pods; empty for the overlay's of this version.
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
        return _HEADER + text


def render(document: Mapping[str, Any], choices: Choices) -> Rendered:
    """Makes the RayService.

    Args:
        document: A Serve file's contents, which Serve accepts.
        choices: The rest.

    Raises:
        InvalidConfig: With one problem for each key that is wrong.
    """
    service = overlays.load_service(choices.overlay)
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
    _name_pods(service, choices)
    _fill_in(service, file, config, choices)
    warnings = [*_warn_of_file(document, config, choices), *_warn_of_places(needs, places, assigned)]
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
        _spread_ingress(application, max(least, load_platform_config(args).ingress.num_replicas))
    return file, load_platform_config(args)


def _spread_ingress(application: dict[str, Any], replicas: int) -> None:
    """So many processes, each on a node of its own, in place."""
    args = application["args"]
    args["ingress"] = {**args.get("ingress", {}), "num_replicas": replicas}
    deployments = application.setdefault("deployments", [])
    if all(item.get("name") != _INGRESS for item in deployments):
        one_more = math.ceil(100 / replicas)
        deployments.append({"name": _INGRESS, "max_replicas_per_node": 1, "max_surge_percent": one_more})


def _make_groups(templates: Sequence[Group], needs: Sequence[Need], choices: Choices) -> Iterator[Group]:
    accelerated = [need for need in needs if need.is_accelerated]
    for template in templates:
        is_for_gpus = groups.has_gpus(template)
        group = groups.resize(template, choices.gpu_worker if is_for_gpus else choices.cpu_worker)
        if not is_for_gpus:
            yield group
        elif accelerated:
            yield from groups.split_by_accelerator(group, accelerated)


def _name_pods(service: dict[str, Any], choices: Choices) -> None:
    """Image, environment and nodes of every pod, in place."""
    image = choices.image or f"{overlays.image_name(choices.overlay)}:{__version__}"
    environment = [{"name": name, "value": value} for name, value in overlays.load_environment(choices.overlay).items()]
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        container["image"] = image
        container["env"] = [*environment, *container.get("env", ())]
        # The ConfigMap with the same in it has a name that only Kustomize knows.
        container["envFrom"] = [item for item in container.get("envFrom", ()) if "configMapRef" not in item]
        if not container["envFrom"]:
            del container["envFrom"]
        if selector := choices.selectors.get(group.get("groupName", "")):
            pod["nodeSelector"] = dict(selector)


def _warn_of_file(document: Mapping[str, Any], config: PlatformConfig, choices: Choices) -> Iterator[str]:
    before = next(item for item in document["applications"] if item.get("import_path") == IMPORT_PATH)
    given = (before.get("args") or {}).get("ingress", {}).get("num_replicas", 1)
    if given != config.ingress.num_replicas:
        yield (
            f"ingress.num_replicas: {config.ingress.num_replicas} instead of {given}: it has to go on while one of its "
            "nodes is away"
        )
    if config.catalog.url.startswith("sqlite") and choices.overlay != "dev":
        yield (
            "catalog.url: a file in a pod: what is registered at run time goes with it; a database keeps it "
            "(postgresql://…)"
        )
    drain_s = int(overlays.load_environment(choices.overlay)[_DRAIN])
    for index, model in enumerate(config.models):
        longest_s = model.limits.request_timeout_s
        if longest_s + _REPLACEMENT_S > drain_s:
            yield (
                f"models[{index}].limits.request_timeout_s: {longest_s:g}, and a pod that stops has {drain_s} s: its "
                "replicas would stop before others have taken their place (kuberay/components/long-requests)"
            )
    if choices.image and "@sha256:" not in choices.image:
        yield "--image: a tag may be moved, and pods that start later would run something else: NAME@sha256:… cannot"


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


def _warn_of_room(head: Group, needs: Sequence[Need]) -> Iterator[str]:
    """Where everything is in one pod."""
    node = groups.capacity(head)
    fitting = [need for need in needs if not groups.misfit(need, head)]
    if count_nodes([(bundle, need.least) for need in fitting for bundle in need.bundles], node) > 1:
        wanted = groups.describe("CPU", sum(need.total("CPU") * need.least for need in fitting))
        there = groups.describe("CPU", node["CPU"])
        yield f"models: not all can run at once: they and the ingress need {wanted}, and the one pod has {there}"


def _warn_of_nodes(workers: Sequence[Group], choices: Choices) -> Iterator[str]:
    accelerated = [group["groupName"] for group in workers if groups.has_gpus(group)]
    for name in accelerated if len(accelerated) > 1 else ():
        if name not in choices.selectors:
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
