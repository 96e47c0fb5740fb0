"""The daemon to protobuf."""

from __future__ import annotations

from dataclasses import fields

from poolmgr.convert.admin import change_to_proto, config_to_proto, status_to_proto
from poolmgr.model.daemon import ConfigChange, DaemonStatus

STATUS = DaemonStatus(
    "0.1", 9, 1_700_000_000.5, 3, 5, "127.0.0.1:9200", "/s", "cgroup", 4, 2, 3, 1, ("w",), {"READY": 2}
)


def test_a_status_shows_every_field():
    status = status_to_proto(STATUS)
    for field in fields(DaemonStatus):
        if field.name not in ("start_time", "warnings", "pools_by_state"):
            assert getattr(status, field.name) == getattr(STATUS, field.name)
    assert status.start_time.ToMilliseconds() == 1_700_000_000_500
    assert (list(status.warnings), dict(status.pools_by_state)) == (["w"], {"READY": 2})


def test_a_configuration_keeps_its_order_and_origins():
    config = config_to_proto([("b.x", "1", "file"), ("a.y", '"t"', "default")], "/etc/p.toml")
    assert [(v.key, v.value, v.origin) for v in config.values] == [("b.x", "1", "file"), ("a.y", '"t"', "default")]
    assert config.file == "/etc/p.toml"


def test_a_reload_shows_what_it_did():
    change = change_to_proto(ConfigChange(("a",), ("b",), ("c",), ("server.addr",)))
    assert (change.pools_created, change.pools_updated, change.pools_deleted) == (["a"], ["b"], ["c"])
    assert change.restart_required == ["server.addr"]
