# SPDX-License-Identifier: Apache-2.0
"""The drills: each does something to the cluster, and returns when all is as before."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final

import yaml

from load_tests.drills.autoscaler import RESOURCE
from load_tests.drills.cluster import Cluster

MODEL: Final = "iris-sklearn"
ROW: Final = [5.1, 3.5, 1.4, 0.2]
_WHOLE_S: Final = 240.0

Drill = Callable[[Cluster], None]


def delete_worker(cluster: Cluster) -> None:
    """A worker's pod is deleted: SIGTERM, then gone; the group starts another."""
    worker = cluster.workers[0]
    worker.terminate()
    worker.wait(150)
    worker.start()
    _until_whole(cluster)


def kill_worker(cluster: Cluster) -> None:
    """A worker's machine dies, and another one comes."""
    worker = cluster.workers[1]
    worker.kill()
    worker.wait(30)
    time.sleep(5)
    worker.start()
    _until_whole(cluster)


def kill_head(cluster: Cluster) -> None:
    """The head dies with all its processes, and comes back 20 s later with its state from Redis."""
    cluster.head.kill()
    cluster.head.wait(30)
    time.sleep(20)
    cluster.head.start()
    cluster.until(lambda: cluster.application() == "RUNNING", 240, "the platform under the new head")
    _until_whole(cluster)
    victim = next(iter(_processes(cluster, f"ray::ServeReplica:{MODEL}@")))
    os.kill(victim, signal.SIGKILL)
    time.sleep(2)
    _until_whole(cluster)  # Serve's controller works again: it replaces what dies
    with cluster.client() as platform:
        platform.register("after-head", framework="sklearn", uri="models/iris-sklearn", wait=True, timeout_s=120)
        platform.unregister("after-head", wait=True)


def edit_model(cluster: Cluster) -> None:
    """One model of the platform file is changed in place, and changed back."""
    changed = yaml.safe_load(cluster.text)
    changed["applications"][0]["args"]["models"][0]["warmup"] = [{"instances": [ROW]}]  # makes a revision
    for text in (yaml.safe_dump(changed), cluster.text):
        cluster.deploy(text)
        time.sleep(5)
        cluster.until(lambda: cluster.application() == "RUNNING", 240, "the changed platform")
        _until_whole(cluster)


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
    """A group of nodes goes from none to one and back, twice: for a model that only it can hold, and that sleeps."""
    nodes = cluster.count_nodes()
    with cluster.client() as platform:
        platform.register(
            "on-spare",
            framework="sklearn",
            uri="models/iris-sklearn",
            resources={"num_cpus": 0, "custom": {RESOURCE: 1}},
            autoscaling={"min_replicas": 0, "downscale_to_zero_delay_s": 5},
            limits={"request_timeout_s": 180},
            wait=True,
            timeout_s=180,
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
    "edit-model": edit_model,
    "break-file": break_file,
    "lose-controller": lose_controller,
    "restart-postgres": restart_postgres,
    "kill-head": kill_head,
    "scale-group": scale_group,
    "replace-cluster": replace_cluster,
}


def _until_whole(cluster: Cluster) -> None:
    models = yaml.safe_load(cluster.text)["applications"][0]["args"]["models"]
    replicas = next(model["autoscaling"]["min_replicas"] for model in models if model["name"] == MODEL)
    cluster.until(lambda: cluster.is_whole(MODEL, replicas), _WHOLE_S, f"{MODEL} to be whole")


def _processes(cluster: Cluster, title: str) -> set[int]:
    return {process for node in cluster.nodes for process in node.processes(title)}
