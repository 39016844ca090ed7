# SPDX-License-Identifier: Apache-2.0
"""What Ray Serve says of its applications, as far as the controller goes by it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from ray.serve._private.client import ServeControllerClient
from ray.serve._private.common import ReplicaState
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from modelyard.serve.handle import DEPLOYMENT_NAME

_LOADED: Final = (
    ReplicaState.RUNNING,
    ReplicaState.UPDATING,
    ReplicaState.RECOVERING,
    ReplicaState.PENDING_MIGRATION,
)
"""States of a replica that has its model: while Serve takes new settings to it, or itself starts anew, it answers."""
_REACHED: Final = (ReplicaState.RUNNING, ReplicaState.PENDING_MIGRATION)
"""Those that Serve's handles lead to."""
_NO_PLACE: Final = re.compile(
    r"to be scheduled\..*?Resources required for each replica: (?P<needed>\{.*?\}), "
    r"total resources available: (?P<free>\{.*?\})",
    re.DOTALL,
)
"""Source: ``ray/serve/_private/deployment_state.py``; Serve says so half a minute after it began to look for one."""


def read_applications() -> dict[str, Observed]:
    """All applications, by name. ``serve.status()`` checks each deployment's whole configuration for that.

    That pickles two classes for each deployment, over and over: most of what a platform of fifty models did.

    Raises:
        RayServeException: Serve does not run here.
        RayError: Its controller does not answer.
    """
    details = cast(ServeControllerClient, _get_global_client()).get_serve_details()
    return {name: Observed.from_details(application) for name, application in details["applications"].items()}


def is_revision_application(name: str, deployments: Iterable[str]) -> bool:
    """The application is one of ours, not one that somebody else runs on the same cluster."""
    model, _, number = name.rpartition("@")
    return bool(model) and number.isdecimal() and set(deployments) <= {DEPLOYMENT_NAME}


@dataclass(frozen=True, slots=True)
class Observed:
    """What Serve says of one application.

    Attributes:
        running: Replicas that have loaded the model.
        wanted: Replicas there should be; those of any state.
        may_sleep: It runs as it should, and whether any replica does is for its load to say.
        has_failed: Serve gave up starting it.
        is_deleting: It is being taken down.
        message: Serve's own words.
        misfit: Why no node of the cluster could hold a replica; empty where one could.
        replicas: Names of those that calls through Serve may reach.
        deployments: Names of its deployments.
    """

    running: int = 0
    wanted: int = 0
    may_sleep: bool = False
    has_failed: bool = False
    is_deleting: bool = False
    message: str = ""
    misfit: str = ""
    replicas: tuple[str, ...] = ()
    deployments: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """What its replicas wait for that have no place in the cluster, in Serve's words; empty where they have one."""
        found = _NO_PLACE.search(self.message)
        return f"it needs {found['needed']} of each node, free are {found['free']}" if found else ""

    @classmethod
    def from_details(cls, application: Mapping[str, Any]) -> Observed:
        """From Serve's details of it, an ``ApplicationDetails`` as a mapping."""
        deployments: Mapping[str, Mapping[str, Any]] = application["deployments"]
        replicas = [one for deployment in deployments.values() for one in deployment["replicas"]]
        states = {one["replica_id"]: ReplicaState(one["state"]) for one in replicas}
        status = ApplicationStatus(application["status"])
        messages = [application["message"], *(deployment["message"] for deployment in deployments.values())]
        return cls(
            running=sum(state in _LOADED for state in states.values()),
            wanted=sum(state is not ReplicaState.STOPPING for state in states.values()),
            replicas=tuple(sorted(name for name, state in states.items() if state in _REACHED)),
            may_sleep=status in (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOYING),
            has_failed=status is ApplicationStatus.DEPLOY_FAILED,
            is_deleting=status is ApplicationStatus.DELETING,
            message=" ".join(message for message in messages if message),
            deployments=tuple(deployments),
        )
