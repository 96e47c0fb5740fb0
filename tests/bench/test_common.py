"""The judge of the benches, and where they refuse to run."""

from __future__ import annotations

import json

import pytest

from bench import common, respawn, rpc
from bench.common import Report, filesystem, judge, percentile
from bench.load import Stretch
from bench.syncs import count

GOOD = {
    **{f"getpool_vs_echo_{n}": 0.9 for n in rpc.CALLERS},
    **{f"lease_vs_echo_{n}": 0.7 for n in rpc.CALLERS},
    "daemon_rss_mb": 66.0,
    "shim_rss_mb": 11.0,
    "idle_cpu_percent": 1.0,
}
MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 22 0:28 / /tmp rw,nosuid - tmpfs tmpfs rw
32 31 254:1 / /tmp/my\\040disk rw - xfs /dev/vdb rw
"""


def below(bars, values):
    return [bar.name for bar, _, met in judge(bars, values) if not met]


def test_good_figures_meet_every_bar_and_figures_just_past_a_bar_do_not():
    assert below(rpc.BARS, GOOD) == []
    bad = {bar.name: bar.bound * (1.01 if bar.at_most else 0.99) for bar in rpc.BARS}
    assert below(rpc.BARS, bad) == [bar.name for bar in rpc.BARS]


def test_a_bar_is_met_at_its_bound():
    assert below(respawn.BARS, {"respawn_vs_c_loop": 4.0, "supervisord_vs_respawn": 100.0}) == []
    assert below(respawn.BARS, {"respawn_vs_c_loop": 4.01, "supervisord_vs_respawn": 99.9}) == [
        "respawn_vs_c_loop",
        "supervisord_vs_respawn",
    ]


def test_what_was_not_measured_is_not_met():
    assert below(respawn.BARS, {"respawn_vs_c_loop": float("nan")}) == ["respawn_vs_c_loop", "supervisord_vs_respawn"]


def test_a_slow_respawn_is_told_as_below(capsys):
    fast = {"poolmgr": [3.0] * 30, "c_loop": [1.0] * 30, "supervisord": [1000.0] * 10, "circus": [3000.0] * 5}
    for milliseconds, verdict in ((3.0, "met"), (30.0, "below")):
        respawn.report({**fast, "poolmgr": [milliseconds] * 30}).print(as_json=False)
        words = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
        assert words == [verdict, verdict]


def test_the_last_line_is_the_report_as_json(capsys):
    report = Report("respawn", respawn.BARS, {"respawn_ms_p50": 3.14159}, {"respawn_vs_c_loop": 2.0})
    report.print(as_json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "bench": "respawn",
        "figures": {"respawn_ms_p50": 3.1416},
        "ratios": {"respawn_vs_c_loop": 2.0},
    }


def test_a_ratio_is_the_median_over_the_rounds_not_of_the_sums():
    ours = [Stretch(90.0, 1.0), Stretch(9.0, 1.0), Stretch(80.0, 1.0)]
    bare = [Stretch(100.0, 1.0), Stretch(10.0, 1.0), Stretch(10.0, 1.0)]
    assert rpc.Samples(ours, bare).ratio == pytest.approx(0.9)


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (99, 4), (100, 4), (1, 1)])
def test_a_percentile_is_one_of_the_values_by_nearest_rank(percent, expected):
    assert percentile([4, 2, 1, 3], percent) == expected


@pytest.mark.parametrize(
    ("path", "kind"), [("/home/x", "ext4"), ("/tmp", "tmpfs"), ("/tmp/deep/er", "tmpfs"), ("/tmp/my disk/x", "xfs")]
)
def test_a_file_system_is_the_one_of_the_innermost_mount(path, kind):
    assert filesystem(common.Path(path), MOUNTS) == kind


def test_a_bench_refuses_state_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "filesystem", lambda path, mountinfo: "tmpfs")
    with pytest.raises(SystemExit, match="tmpfs"), common.state_directory(tmp_path, "respawn"):
        pytest.fail("it ran")


def test_a_bench_removes_its_state_unless_it_fails(tmp_path):
    with common.state_directory(tmp_path, "one") as directory:
        (directory / "file").write_text("x")
    assert not directory.exists()
    with pytest.raises(RuntimeError), common.state_directory(tmp_path, "two") as directory:
        raise RuntimeError
    assert directory.exists()


def test_fsyncs_between_kill_and_first_line_are_told_from_those_after():
    lines = [
        "41 10.001000 fsync(3) = 0",
        "41 10.500000 fdatasync(3 <unfinished ...>",
        "42 20.002000 fsync(7) = 0",
        "42 20.003000 +++ exited with 0 +++",
    ]
    assert count(lines, [(10.0, 10.004), (20.0, 20.001)]) == (0.5, 1.5)
