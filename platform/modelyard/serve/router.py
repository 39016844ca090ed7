# SPDX-License-Identifier: Apache-2.0
"""Which of a revision's replicas Serve gives a call to that comes through a handle.

"One request": between the caller and a replica on another node, where no lane leads.
"""

from __future__ import annotations

import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class NamedReplicaRouter(RequestRouter):
    """The replica that the caller names, else the less busy one of two.

    The name is the ``session_id`` of the handle's options. A replica that is not there, or takes no more calls, is
    passed over.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas, in the order in which they are tried; see Serve's ``RequestRouter``."""
        two = random.sample(candidate_replicas, min(2, len(candidate_replicas)))
        if pending_request is None:
            return [two]
        pending_request.routing_context.should_backoff = True  # else Serve asks again without a pause
        name = pending_request.metadata.session_id
        named = [one for one in candidate_replicas if one.replica_id.unique_id == name] if name else []
        return [named, two]
