"""Engines: model -> protobuf."""

from __future__ import annotations

from poolmgr.convert.common import optional_timestamp
from poolmgr.convert.pool import ENGINES, STATES
from poolmgr.model.registration import EngineView
from poolmgr.v1 import engine_pb2 as pb


def engine_to_proto(view: EngineView) -> pb.EngineInstance:
    return pb.EngineInstance(
        engine_id=view.engine_id,
        pool_id=view.pool_id,
        generation=view.generation,
        engine=ENGINES[view.engine],
        engine_version=view.engine_version,
        endpoint=view.endpoint,
        pid=view.pid,
        state=STATES[view.state],
        slots_total=view.slots_total,
        slots_free=view.slots_free,
        device_mask=view.device_mask,
        start_time=optional_timestamp(view.start_time),
        directory=view.directory,
        registered=view.registered,
        last_heartbeat=optional_timestamp(view.last_heartbeat),
        in_flight=view.in_flight,
        progress_counter=view.progress_counter,
    )
