"""AdminService over the facade."""

from __future__ import annotations

from poolmgr.api.guard import Context
from poolmgr.convert.admin import change_to_proto, config_to_proto, status_to_proto
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import admin_pb2 as pb
from poolmgr.v1 import admin_pb2_grpc


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:
        return status_to_proto(self._facade.status())

    async def GetConfig(self, request: pb.GetConfigRequest, context: Context) -> pb.Config:
        return config_to_proto(self._facade.config_values(), self._facade.about.config_file)

    async def ReloadConfig(self, request: pb.ReloadConfigRequest, context: Context) -> pb.ReloadConfigResponse:
        return change_to_proto(await self._facade.reload_config(request.validate_only))

    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.ShutdownResponse:
        return pb.ShutdownResponse(engines_left_running=self._facade.shutdown(request.stop_engines))
