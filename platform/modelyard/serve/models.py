# SPDX-License-Identifier: Apache-2.0
"""``tensorflow.serving.ModelService``: the states of models, and which models are served.

"One request": as ``rpc``. The names of the methods are those of the service's definition.

Source: TensorFlow Serving ``apis/model_service.proto``; ``model_servers/model_service_impl.cc``.
"""

from __future__ import annotations

from modelyard.dataplane import DataPlane
from modelyard.protocol.tfserving import messages, reload, status
from modelyard.protos import tensorflow_serving_pb2 as pb
from modelyard.serve.reload import Reloads
from modelyard.serve.rpc import Context, timeout_s, unary_edge


class ModelService:
    """The service over one data plane.

    Args:
        plane: Whose models.
        reloads: What makes lists of models the served ones.
    """

    def __init__(self, plane: DataPlane, reloads: Reloads) -> None:
        self._plane = plane
        self._reloads = reloads

    @unary_edge(pb.GetModelStatusResponse)
    async def GetModelStatus(  # noqa: N802
        self, request: pb.GetModelStatusRequest, context: Context
    ) -> pb.GetModelStatusResponse:
        """The state of one version, or of all that there are."""
        spec = messages.decode_spec(request.model_spec)
        revision = self._plane.table.get_revision(spec.model, spec.version)
        listed = [revision] if spec.version else self._plane.table.get_model(spec.model).revisions.values()
        return status.encode_status(status.to_version_status(one.version, one.state, one.reason) for one in listed)

    @unary_edge(pb.ReloadConfigResponse)
    async def HandleReloadConfigRequest(  # noqa: N802
        self, request: pb.ReloadConfigRequest, context: Context
    ) -> pb.ReloadConfigResponse:
        """Makes the models of a list the served ones; see :class:`~modelyard.serve.reload.Reloads`."""
        await self._reloads.reload(reload.decode_config(request), timeout_s(context), actor="grpc")
        return reload.encode_reloaded(request.metric_names)
