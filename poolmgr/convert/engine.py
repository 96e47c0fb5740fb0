"""Engines: model -> protobuf."""

from __future__ import annotations

from poolmgr.convert.common import optional_timestamp
from poolmgr.convert.pool import ENGINES, STATES
from poolmgr.model.pool import PoolView
from poolmgr.v1 import engine_pb2 as pb


def engine_to_proto(view: PoolView, directory: str) -> pb.EngineInstance:
    """The engine behind a pool. `directory`: where the daemon keeps everything of it."""
    return pb.EngineInstance(
        engine_id=view.engine_id,
        pool_id=view.pool_id,
        generation=view.generation,
        engine=ENGINES[view.spec.engine],
        engine_version=view.engine_version,
        endpoint=view.endpoint,
        pid=view.pid,
        state=STATES[view.state],
        slots_total=view.slots_total,
        slots_free=view.slots_free,
        device_mask=view.spec.device_mask,
        start_time=optional_timestamp(view.start_time),
        directory=directory,
    )
