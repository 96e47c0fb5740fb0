"""The daemon itself: model -> protobuf."""

from __future__ import annotations

from collections.abc import Iterable

from poolmgr.convert.common import timestamp_to_proto
from poolmgr.convert.device import driver_to_proto
from poolmgr.model.daemon import ConfigChange, DaemonStatus
from poolmgr.v1 import admin_pb2 as pb


def status_to_proto(status: DaemonStatus) -> pb.Status:
    return pb.Status(
        version=status.version,
        pid=status.pid,
        start_time=timestamp_to_proto(status.start_time),
        epoch=status.epoch,
        revision=status.revision,
        address=status.address,
        state_dir=status.state_dir,
        containment=status.containment,
        pools=status.pools,
        pools_ready=status.pools_ready,
        engines_live=status.engines_live,
        active_leases=status.active_leases,
        warnings=status.warnings,
        pools_by_state=status.pools_by_state,
        driver=driver_to_proto(status.driver) if status.driver else None,
    )


def config_to_proto(values: Iterable[tuple[str, str, str]], file: str) -> pb.Config:
    """`values`: ("section.key", value as JSON, origin). `file`: what was read, empty when there is none."""
    return pb.Config(
        values=[pb.ConfigValue(key=key, value=value, origin=origin) for key, value, origin in values], file=file
    )


def change_to_proto(change: ConfigChange) -> pb.ReloadConfigResponse:
    return pb.ReloadConfigResponse(
        pools_created=change.pools_created,
        pools_updated=change.pools_updated,
        pools_deleted=change.pools_deleted,
        restart_required=change.restart_required,
    )
