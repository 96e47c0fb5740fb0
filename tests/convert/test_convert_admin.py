"""The daemon to protobuf."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from poolmgr.convert.admin import change_to_proto, config_to_proto, status_to_proto
from poolmgr.model.daemon import ConfigChange, DaemonStatus
from poolmgr.model.device import Absence
from poolmgr.model.device_health import DriverStatus
from poolmgr.v1 import admin_pb2

STATUS = DaemonStatus(
    "0.1", 9, 1_700_000_000.5, 3, 5, "127.0.0.1:9200", "/s", "cgroup", 4, 2, 3, 1, ("w",), {"READY": 2}
)


def test_a_status_shows_every_field():
    status = status_to_proto(STATUS)
    for field in fields(DaemonStatus):
        if field.name not in ("start_time", "warnings", "pools_by_state", "driver"):
            assert getattr(status, field.name) == getattr(STATUS, field.name)
    assert status.start_time.ToMilliseconds() == 1_700_000_000_500
    assert (list(status.warnings), dict(status.pools_by_state)) == (["w"], {"READY": 2})


def test_a_status_without_telemetry_has_no_driver():
    assert not status_to_proto(STATUS).HasField("driver")


@pytest.mark.behaviour("DEV-4")
@pytest.mark.parametrize("absence", Absence)
def test_every_reason_for_the_lack_of_devices_has_its_name_on_the_wire(absence):
    told = DriverStatus(absence=absence, message="why", advice="what to do", simulated="2xT4")
    driver = status_to_proto(replace(STATUS, driver=told)).driver
    assert admin_pb2.Driver.Absence.Name(driver.absence) == absence.value
    assert (driver.message, driver.advice, driver.simulated) == ("why", "what to do", "2xT4")


def test_what_is_not_known_of_the_driver_is_absent_and_zero_is_not():
    unknown = status_to_proto(replace(STATUS, driver=DriverStatus())).driver
    for name in ("discovery_age", "ring_depth", "ring_bytes", "ring_rate_hz", "heartbeat_age", "stalled"):
        assert not unknown.HasField(name), name
    told = DriverStatus(2, "570", "12.8", None, discovery_age=0.0, ring_bytes=0, stalled_seconds=0.0, stalls=3)
    driver = status_to_proto(replace(STATUS, driver=told)).driver
    assert all(driver.HasField(name) for name in ("discovery_age", "ring_bytes", "stalled"))
    assert (driver.devices, driver.driver_version, driver.stalls) == (2, "570", 3)


def test_a_configuration_keeps_its_order_and_origins():
    config = config_to_proto([("b.x", "1", "file"), ("a.y", '"t"', "default")], "/etc/p.toml")
    assert [(v.key, v.value, v.origin) for v in config.values] == [("b.x", "1", "file"), ("a.y", '"t"', "default")]
    assert config.file == "/etc/p.toml"


def test_a_reload_shows_what_it_did():
    change = change_to_proto(ConfigChange(("a",), ("b",), ("c",), ("server.addr",)))
    assert (change.pools_created, change.pools_updated, change.pools_deleted) == (["a"], ["b"], ["c"])
    assert change.restart_required == ["server.addr"]
