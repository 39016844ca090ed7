# SPDX-License-Identifier: Apache-2.0
"""The drills: each does something to the cluster, and returns when all is as before."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import yaml

from load_tests.drills.autoscaler import RESOURCE
from load_tests.drills.cluster import Cluster

MODEL: Final = "iris-sklearn"
ROW: Final = [5.1, 3.5, 1.4, 0.2]
_WHOLE_S: Final = 240.0
_REPLICA: Final = f"ray::ServeReplica:{MODEL}@"

Drill = Callable[[Cluster], None]


def delete_worker(cluster: Cluster) -> None:
    """A worker's pod is deleted: SIGTERM, then gone; the group starts another."""
    worker = cluster.workers[0]
    cluster.delete(worker)
    cluster.wait(worker, 150)
    worker.start()
    _until_whole(cluster)


def kill_worker(cluster: Cluster) -> None:
    """A worker's machine dies, and another one comes."""
    worker = cluster.workers[1]
    nodes = cluster.count_nodes()
    cluster.kill(worker)
    cluster.until(lambda: cluster.count_nodes() < nodes, 60, "Ray to miss the node")
    worker.start()
    _until_whole(cluster)


def cut_worker(cluster: Cluster) -> None:
    """A worker's machine vanishes from the network, which closes no connections, and another one comes."""
    worker = cluster.workers[2]
    nodes = cluster.count_nodes()
    cluster.cut(worker)
    try:
        cluster.until(lambda: cluster.count_nodes() < nodes, 120, "Ray to miss the node")
    finally:
        cluster.kill(worker)
        worker.connect()
    worker.start()
    _until_whole(cluster)


def kill_head(cluster: Cluster) -> None:
    """The head dies with all its processes, and comes back 20 s later with its state from Redis."""
    cluster.kill(cluster.head)
    time.sleep(20)
    cluster.head.start()
    cluster.until(lambda: cluster.application() == "RUNNING", 240, "the platform under the new head")
    _until_whole(cluster)
    before = _processes(cluster, _REPLICA)
    os.kill(next(iter(before)), signal.SIGKILL)
    # Serve's controller works again: it replaces what dies.
    cluster.until(lambda: set(_processes(cluster, _REPLICA)) - set(before), 120, "another replica")
    _until_whole(cluster)
    with cluster.client() as platform:
        platform.register("after-head", framework="sklearn", uri="models/iris-sklearn", wait=True, timeout_s=120)
        platform.unregister("after-head", wait=True)


def edit_model(cluster: Cluster) -> None:
    """One model of the platform file is changed in place, and changed back; each time another revision answers."""
    changed = yaml.safe_load(cluster.text)
    _find_model(changed)["warmup"] = [{"instances": [ROW]}]  # makes a revision
    for text in (yaml.safe_dump(changed), cluster.text):
        _deploy_next(cluster, text, "the changed model")


def break_model(cluster: Cluster) -> None:
    """One model of the platform file is to be loaded from where nothing is: its revision before goes on answering."""
    before = _revision(cluster)
    broken = yaml.safe_load(cluster.text)
    _find_model(broken)["uri"] = "models/none"
    cluster.deploy(yaml.safe_dump(broken))
    cluster.until(lambda: "gets no traffic" in _reason(cluster), 240, "the mistake to be found")
    time.sleep(5)
    if (found := _revision(cluster)) != before:
        raise RuntimeError(f"expected an answer of revision {before}, got one of {found}")
    _deploy_next(cluster, cluster.text, "the right file")


def break_file(cluster: Cluster) -> None:
    """A platform file with a mistake is applied; what runs goes on, and the right file makes it well again."""
    broken = yaml.safe_load(cluster.text)
    broken["applications"][0]["args"]["ingres"] = {}
    cluster.deploy(yaml.safe_dump(broken))
    cluster.until(lambda: cluster.application() == "DEPLOY_FAILED", 120, "the mistake to be found")
    time.sleep(5)
    cluster.deploy(cluster.text)
    cluster.until(lambda: cluster.application() == "RUNNING", 240, "the right file")
    _until_whole(cluster)


def restart_postgres(cluster: Cluster) -> None:
    """The catalog's database is cut off for ten seconds."""
    cluster.postgres.stop()
    time.sleep(10)
    cluster.postgres.start()
    _until_whole(cluster)
    with cluster.client() as platform:
        platform.register("after-postgres", framework="sklearn", uri="models/iris-sklearn", wait=True, timeout_s=120)
        platform.unregister("after-postgres", wait=True)


def lose_controller(cluster: Cluster) -> None:
    """The platform's controller dies in the middle of a rollout, which goes on to its end."""
    with cluster.client() as platform:
        platform.register(
            "rolling", framework="sklearn", uri="models/iris-sklearn", resources={"num_cpus": 0.1}, wait=True
        )
        platform.register(
            "rolling",
            framework="sklearn",
            uri="models/iris-sklearn",
            resources={"num_cpus": 0.1},
            warmup=[{"instances": [ROW]}],
            rollout={"steps": [1, 50, 100], "interval_s": 5, "min_requests": 1},
        )
    (controller,) = _processes(cluster, "ray::ServeReplica:platform:Controller")
    os.kill(controller, signal.SIGKILL)

    def is_promoted() -> bool:
        try:
            with cluster.client() as platform:
                return platform.status("rolling").traffic == {"2": 100.0}
        except Exception:  # noqa: BLE001  # the controller is away
            return False

    cluster.until(is_promoted, 120, "the rollout to end")
    with cluster.client() as platform:
        platform.unregister("rolling", wait=True)
    _until_whole(cluster)


def replace_cluster(cluster: Cluster) -> None:
    """A new image: a second cluster beside the first, the Service switched, the first one deleted."""
    cluster.replace()
    _until_whole(cluster)
    with cluster.client() as platform:
        platform.register("after-switch", framework="sklearn", uri="models/iris-sklearn", wait=True, timeout_s=120)
        platform.unregister("after-switch", wait=True)


def scale_group(cluster: Cluster) -> None:
    """A group of nodes goes from none to two and back, for two replicas, then twice to one, for a model that sleeps."""
    nodes = cluster.count_nodes()
    only_there: Mapping[str, Any] = {
        "framework": "sklearn",
        "uri": "models/iris-sklearn",
        "resources": {"num_cpus": 0, "custom": {RESOURCE: 1}},
        "wait": True,
        "timeout_s": 240,
    }
    with cluster.client() as platform:
        platform.register("on-spares", autoscaling={"min_replicas": 2, "max_replicas": 2}, **only_there)
        cluster.until(lambda: cluster.count_nodes() == nodes + 2, 240, "a node of the group for each replica")
        platform.unregister("on-spares", wait=True)
    cluster.until(lambda: cluster.count_nodes() == nodes, 240, "both nodes to go")
    with cluster.client() as platform:
        platform.register(
            "on-spare",
            autoscaling={"min_replicas": 0, "downscale_to_zero_delay_s": 5},
            limits={"request_timeout_s": 180},
            **only_there,
        )
        cluster.until(lambda: cluster.count_nodes() == nodes, 240, "the group to be empty again")
        answer = platform.predict("on-spare", [ROW], timeout_s=180).outputs["output-0"]
        if answer.tolist() != [0]:
            raise RuntimeError(f"expected [0], got {answer}")
        if cluster.count_nodes() == nodes:
            raise RuntimeError("it was not answered on a node of the group")
        platform.unregister("on-spare", wait=True)
    cluster.until(lambda: cluster.count_nodes() == nodes, 240, "the group to be empty at the end")


DRILLS: Final[Mapping[str, Drill]] = {
    "delete-worker": delete_worker,
    "kill-worker": kill_worker,
    "cut-worker": cut_worker,
    "edit-model": edit_model,
    "break-model": break_model,
    "break-file": break_file,
    "lose-controller": lose_controller,
    "restart-postgres": restart_postgres,
    "kill-head": kill_head,
    "scale-group": scale_group,
    "replace-cluster": replace_cluster,
}


def check_overlay(text: str) -> str:
    """Why nothing can be drilled with this platform file; empty where it can."""
    arguments = yaml.safe_load(text)["applications"][0]["args"]
    if all(model["name"] != MODEL for model in arguments["models"]):
        return f"it has no model {MODEL}, which the clients ask"
    if arguments["ingress"]["num_replicas"] < 2:
        return "it has one ingress process, and whatever ends that ends all answers"
    return ""


def _until_whole(cluster: Cluster) -> None:
    replicas = _find_model(yaml.safe_load(cluster.text)).get("autoscaling", {}).get("min_replicas", 1)

    def is_whole() -> bool:
        has_nodes = cluster.count_nodes() >= len(cluster.nodes)
        return has_nodes and len(_processes(cluster, _REPLICA)) >= replicas and cluster.is_whole(MODEL, replicas)

    cluster.until(is_whole, _WHOLE_S, f"every node and {MODEL} to be whole")


def _find_model(document: Any) -> dict[str, Any]:
    """What a platform file says of the model that is asked."""
    models = document["applications"][0]["args"]["models"]
    found: dict[str, Any] = next(model for model in models if model["name"] == MODEL)
    return found


def _deploy_next(cluster: Cluster, text: str, what: str) -> None:
    """Deploys a platform file, and waits until a later revision of the model answers and all is whole."""
    before = _revision(cluster)
    cluster.deploy(text)
    cluster.until(lambda: _has_moved(cluster, before), 240, f"an answer of {what}")
    cluster.until(lambda: cluster.application() == "RUNNING", 240, what)
    _until_whole(cluster)


def _revision(cluster: Cluster) -> int:
    """The number of the one that answers."""
    with cluster.client() as platform:
        return int(platform.predict(MODEL, [ROW], timeout_s=30).model_version)


def _has_moved(cluster: Cluster, before: int) -> bool:
    try:
        return _revision(cluster) > before
    except Exception:  # noqa: BLE001  # whatever is away just now
        return False


def _reason(cluster: Cluster) -> str:
    """What the platform says of the model's state; nothing where nobody says."""
    try:
        with cluster.client() as platform:
            return platform.status(MODEL).reason
    except Exception:  # noqa: BLE001  # whatever is away just now
        return ""


def _processes(cluster: Cluster, title: str) -> set[int]:
    return {process for node in cluster.nodes for process in node.processes(title)}
