"""The telemetry ring: what is written is read, nothing torn is, and a file that is no ring is refused (TEL-1)."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from poolmgr_ext.ring import GONE, NOT_A_RING, TORN, UNREADABLE, WRONG_VERSION, Field, RingError, RingReader
from poolmgr_ext.ringwriter import RingWriter

from tests.ext import exact_statistics as twin

ROOT = Path(__file__).resolve().parents[2]
SECOND = 10**9
ALL = 2**64 - 1
FAST = [Field("power", "watts", "gauge", 0.2), Field("used", "bytes", "gauge", 0.1)]
SLOW = [Field("energy", "joules", "counter", 1.0), Field("replays", "count", "counter", 1.0, 32)]
# In ring.h: where a cell of the first group begins is told by the header; the version follows the magic.
VERSION_AT = 8


def writer(path: Path, devices: int = 2, **options: object) -> RingWriter:
    settings: dict[str, object] = {"rate_hz": 10.0, "depth_seconds": 5.0, "epoch": 7, "fields": FAST + SLOW, **options}
    return RingWriter(str(path), device_ids=[f"GPU-{i}" for i in range(devices)], **settings)  # type: ignore[arg-type]


def matrix(rows: list[list[float]]) -> memoryview:
    return memoryview(array("d", [x for row in rows for x in row])).cast("B").cast("d", [len(rows), len(rows[0])])


def put(ring: RingWriter, group: int, at: int, rows: list[list[float]], fresh: int = ALL) -> None:
    ring.append(group, array("q", [at] * len(rows)), array("Q", [fresh] * len(rows)), matrix(rows))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ring.7"


# What a ring tells.


@pytest.mark.behaviour("TEL-1")
def test_the_header_describes_the_ring_to_whoever_opens_it(path: Path) -> None:
    ring = writer(path)
    with RingReader(path) as reader:
        assert (reader.version, reader.epoch, reader.writer_pid) == (1, 7, os.getpid())
        assert reader.fields == (*[f._replace(counter_bits=0) for f in FAST], *SLOW)
        assert reader.device_ids == ("GPU-0", "GPU-1") and reader.rate_hz == 10.0
        assert reader.depth == reader.depth_asked == 5.0 and reader.bytes == ring.bytes == path.stat().st_size
        started = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
        assert reader.writer_start == int(started)
        assert not reader.ended
        ring.end()
        assert reader.ended
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.behaviour("TEL-1")
def test_the_latest_row_of_each_device_is_read_by_number_and_by_id(path: Path) -> None:
    ring = writer(path)
    with RingReader(path) as reader:
        assert reader.latest(0) is None
        put(ring, 0, 3 * SECOND, [[1.0, 2.0], [3.0, float("nan")]])
        assert reader.latest(0) == (3 * SECOND, [1.0, 2.0, None, None])
        put(ring, 1, 4 * SECOND, [[5.0, 6.0], [7.0, 8.0]])
        put(ring, 0, 5 * SECOND, [[1.5, 2.5], [3.5, 4.5]])
        assert reader.latest("GPU-1") == reader.latest(1) == (5 * SECOND, [3.5, 4.5, 7.0, 8.0])
        with pytest.raises(IndexError):
            reader.latest(2)


@pytest.mark.behaviour("TEL-1")
def test_history_has_each_reading_once_although_rows_repeat_values(path: Path) -> None:
    ring = writer(path)
    for i in range(120):  # more than the ring keeps
        put(ring, 0, i * SECOND // 10, [[float(i // 2), float(i)]] * 2, fresh=0b11 if i % 2 == 0 else 0b10)
    with RingReader(path) as reader:
        assert reader.history(0, "used", 1.0) == [(i * SECOND // 10, float(i)) for i in range(110, 120)]
        assert reader.history("GPU-1", 0, 1.0) == [(i * SECOND // 10, i // 2) for i in range(110, 120, 2)]
        assert len(reader.history(0, "used", 1e6)) == 49  # all but the slot that the writer is about to take
        with pytest.raises(KeyError):
            reader.history(0, "fan", 1.0)


@pytest.mark.behaviour("TEL-3")
def test_quantiles_and_robust_slope_are_those_of_every_reading_of_the_window(path: Path) -> None:
    ring = writer(path, depth_seconds=100.0)
    for i in range(700):
        put(ring, 0, i * SECOND // 10, [[float(i % 17), float(i * i)]] * 2)
    with RingReader(path) as reader:
        for window in (1.0, 10.0, 60.0):
            taken = reader.history(1, "used", window)
            numbers, times = [x for _, x in taken], [(t - (699 * SECOND // 10)) / SECOND + window for t, _ in taken]
            found = reader.quantiles(window)[1][1]
            assert found is not None
            assert found[:4] == (len(taken), *(twin.nearest_rank(numbers, p) for p in (50, 95, 99)))
            slope = twin.theil_sen(times, numbers, 0.0, window / 60)
            assert found.robust_slope == pytest.approx(slope, rel=1e-6)
        assert reader.quantiles(10.0)[0][2] is None
        with pytest.raises(ValueError, match="no window"):
            reader.quantiles(-1.0)


@pytest.mark.behaviour("TEL-5")
def test_a_counter_is_told_as_what_it_counted_over_a_reset_and_a_wrap(path: Path) -> None:
    ring = writer(path)
    for at, (energy, replays) in enumerate([(100.0, 2.0**32 - 5), (150.0, 2.0**32 - 1), (10.0, 4.0), (30.0, 4.0)]):
        put(ring, 1, at * SECOND, [[energy, replays]] * 2)
    with RingReader(path) as reader:
        assert reader.increase(0, "energy", 60.0) == 50 + 10 + 20
        assert reader.increase(0, "replays", 60.0) == 4 + 5
        assert reader.quantiles(60.0)[0][2].p99 == 100 + 80  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="no counter"):
            reader.increase(0, "power", 60.0)


@pytest.mark.behaviour("TEL-1")
def test_the_depth_shrinks_to_what_fits_and_the_header_says_so(path: Path) -> None:
    limit = 1 << 20
    ring = writer(path, devices=4, depth_seconds=86400.0, max_bytes=limit)
    with RingReader(path) as reader:
        assert reader.depth_asked == 86400.0 and 100 < reader.depth == ring.depth_seconds < 3600
        assert limit * 0.95 < reader.bytes <= limit
    with pytest.raises(ValueError, match="64 devices does not fit"):
        writer(path.with_name("other"), devices=64, max_bytes=limit)
    assert not path.with_name("other").exists()


@pytest.mark.behaviour("TEL-1")
def test_sixty_four_devices_with_every_field_stay_within_128_mib(path: Path) -> None:
    fields = [Field(f"f{i}", "u", "gauge", 0.1) for i in range(16)] + [
        Field(f"s{i}", "u", "gauge", 1.0) for i in range(24)
    ]
    ring = writer(path, devices=64, depth_seconds=600.0, fields=fields)
    assert ring.bytes <= 128 << 20 and 300 < ring.depth_seconds <= 600


def test_a_file_that_exists_is_not_written_over(path: Path) -> None:
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        writer(path)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "options",
    [
        {"fields": []},
        {"fields": [FAST[0], FAST[0]]},
        {"fields": [Field("n" * 40, "u", "gauge", 1.0)]},
        {"fields": [Field("n", "u", "guess", 1.0)]},
        {"fields": [Field(f"n{i}", "u", "gauge", 1.0) for i in range(65)]},
        {"rate_hz": 0.0},
        {"depth_seconds": -1.0},
        {"devices": 257},
    ],
)
def test_a_ring_that_cannot_be_is_refused_before_there_is_a_file(path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"ring|bytes long|gauge"):
        writer(path, **options)  # type: ignore[arg-type]
    assert not path.exists()


def test_a_row_of_another_shape_is_refused(path: Path) -> None:
    ring = writer(path)
    for group, rows in ((0, [[1.0, 2.0]]), (0, [[1.0]] * 2), (2, [[1.0, 2.0]] * 2)):
        with pytest.raises(ValueError, match="group"):
            put(ring, group, 0, rows)


# Files that are no rings.


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def missing(path: Path) -> None:
    path.unlink()


def another_version(path: Path) -> None:
    overwrite(path, VERSION_AT, (2).to_bytes(4, "little"))


def not_ready(path: Path) -> None:
    overwrite(path, 0, bytes(8))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_in_the_header(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def another_file(path: Path) -> None:
    path.write_text("no ring at all, and longer than a header\n" * 100)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


@pytest.mark.behaviour("TEL-1")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (missing, GONE),
        (another_version, WRONG_VERSION),
        (not_ready, NOT_A_RING),
        (cut, NOT_A_RING),
        (cut_in_the_header, NOT_A_RING),
        (empty, NOT_A_RING),
        (another_file, NOT_A_RING),
        (directory, UNREADABLE),
        (pipe, UNREADABLE),
        (link, UNREADABLE),
    ],
)
def test_what_is_no_ring_is_refused_with_its_reason(path: Path, spoil: Callable[[Path], None], reason: str) -> None:
    writer(path)
    spoil(path)
    with pytest.raises(RingError) as refused:
        RingReader(path)
    assert refused.value.reason == reason and str(path) in str(refused.value)


def test_no_byte_of_the_header_can_lead_a_reader_outside_of_the_file(path: Path) -> None:
    writer(path)
    header = path.read_bytes()[:512]
    read = 0
    for at in range(8, 512):
        for value in (0x00, 0x7F, 0xFF):
            overwrite(path, at, bytes([value]))
            try:
                with RingReader(path) as reader:
                    for column in range(len(reader.device_ids)):
                        reader.latest(column)
                        reader.processes(column)
                        reader.history(column, 0, 5.0)
                    reader.quantiles(10.0)
                    read += 1
            except (RingError, MemoryError):
                pass
            overwrite(path, at, header[at : at + 1])
    assert read > 100  # some bytes are only told, not relied on
    RingReader(path).close()


def test_an_unreadable_file_is_refused(path: Path) -> None:
    writer(path)
    path.chmod(0)
    code = (
        "import os, sys\nif os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from poolmgr_ext.ring import RingError, RingReader\n"
        "try:\n    RingReader(sys.argv[1])\nexcept RingError as error:\n    print(error.reason)\n"
    )
    with reachable(path):
        found = subprocess.run(
            ["python3", "-c", code, path], capture_output=True, text=True, check=True, env=environment()
        )
    assert found.stdout.strip() == UNREADABLE


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT / "ext"), "PATH": "/usr/bin:/bin"}


@contextmanager
def reachable(path: Path) -> Iterator[None]:
    """Whoever has given up root may still look for the file."""
    own = [
        each for each in path.parents if each.stat().st_uid == os.getuid() and each.name.startswith(("pytest", "test"))
    ]
    modes = [(each, each.stat().st_mode) for each in own]
    for each in own:
        each.chmod(0o755)
    yield
    for each, mode in modes:
        each.chmod(stat.S_IMODE(mode))


def test_a_ring_that_is_cut_while_it_is_read_is_gone_and_ends_nobody(path: Path) -> None:
    ring = writer(path)
    put(ring, 0, SECOND, [[1.0, 2.0]] * 2)
    reader = RingReader(path)
    os.truncate(path, 4096)
    for ask in (lambda: reader.latest(0), reader.heartbeat, lambda: reader.quantiles(1.0), lambda: reader.epoch):
        with pytest.raises(RingError) as refused:
            ask()
        assert refused.value.reason == GONE


def test_a_closed_reader_says_so(path: Path) -> None:
    writer(path)
    reader = RingReader(path)
    reader.close()
    reader.close()
    with pytest.raises(RingError, match="closed"):
        reader.latest(0)


# One writer and many readers at the same time.


def compiled(source: Path, into: Path) -> Path:
    program = into / source.stem
    include = str(ROOT / "ext/poolmgr_ext")
    flags = ["-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", include]
    subprocess.run(["gcc", *flags, "-o", program, source], check=True)
    return program


@contextmanager
def written_at_full_speed(path: Path, tmp_path: Path) -> Iterator[None]:
    """The smallest ring, so that the writer overtakes its readers as often as can be."""
    fields = [Field(f"f{i}", "u", "gauge", 0.1) for i in range(64)]
    writer(path, devices=1, rate_hz=2.0, depth_seconds=1.0, fields=fields)
    program = compiled(ROOT / "tests/ext/ring_full_speed.c", tmp_path)
    with subprocess.Popen([program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield
        rows = int(child.communicate()[0])
    assert rows > 100_000


def compared(program: Path, path: Path, how: str, until: str) -> dict[str, int]:
    """What the reader counted, over as many runs as it takes for `until` to happen; at most twenty."""
    total: dict[str, int] = {}
    for _ in range(20):
        run = subprocess.run([program, path, how, "2000000"], capture_output=True, text=True, check=True)
        words = run.stdout.split()
        for name, number in zip(words[::2], words[1::2], strict=True):
            total[name] = total.get(name, 0) + int(number)
        if total[until] > 0:
            break
    return total


@pytest.mark.behaviour("TEL-1")
def test_the_documented_reader_in_c_never_sees_a_torn_row_and_meets_the_writer(path: Path, tmp_path: Path) -> None:
    program = compiled(ROOT / "docs/ring_reader.c", tmp_path)
    with written_at_full_speed(path, tmp_path):
        found = compared(program, path, "compare", "retries")
    assert found["torn"] == 0
    assert found["retries"] > 0 and found["right"] > 0


@pytest.mark.behaviour("TEL-1")
def test_a_reader_that_ignores_the_sequence_sees_torn_rows(path: Path, tmp_path: Path) -> None:
    program = compiled(ROOT / "docs/ring_reader.c", tmp_path)
    with written_at_full_speed(path, tmp_path):
        assert compared(program, path, "compare-blind", "torn")["torn"] > 0


@pytest.mark.behaviour("TEL-1")
def test_our_reader_never_sees_a_torn_row_and_gives_up_with_a_reason(path: Path, tmp_path: Path) -> None:
    outcomes = {"right": 0, TORN: 0}
    with written_at_full_speed(path, tmp_path), RingReader(path) as reader:
        until = time.monotonic() + 30
        while (outcomes["right"] < 10_000 or reader.retries == 0) and time.monotonic() < until:
            try:
                found = reader.latest(0)
            except RingError as error:
                outcomes[error.reason] += 1
            else:
                if found is not None:  # the writer has begun
                    assert len(set(found[1])) == 1 and found[1][0] == found[0]
                    outcomes["right"] += 1
        assert reader.retries > 0
    assert outcomes["right"] > 0


@pytest.mark.behaviour("TEL-1")
def test_a_writer_that_died_in_a_row_leaves_the_row_before_it_readable(path: Path) -> None:
    ring = writer(path, devices=1, rate_hz=2.0, depth_seconds=1.0)
    put(ring, 0, SECOND, [[1.0, 1.0]])
    put(ring, 0, 2 * SECOND, [[2.0, 2.0]])
    content = path.read_bytes()
    at = content.index((4).to_bytes(8, "little") + (2 * SECOND).to_bytes(8, "little"))  # sequence of row 1, its time
    first = content.index((2).to_bytes(8, "little") + SECOND.to_bytes(8, "little"))
    overwrite(path, first, (5).to_bytes(8, "little"))  # row 2 begins in the place of row 0
    with RingReader(path) as reader:
        assert reader.latest(0) == (2 * SECOND, [2.0, 2.0, None, None])
        assert reader.history(0, 0, 60.0) == [(2 * SECOND, 2.0)]
        overwrite(path, at, (7).to_bytes(8, "little"))  # and what the header calls the newest is not whole
        with pytest.raises(RingError) as torn:
            reader.latest(0)
    assert torn.value.reason == TORN


def test_the_reader_in_c_shows_names_units_and_ages_and_refuses_what_is_no_ring(path: Path, tmp_path: Path) -> None:
    program = compiled(ROOT / "docs/ring_reader.c", tmp_path)
    put(writer(path), 0, SECOND, [[250.0, 2.0**33], [float("nan"), 1.0]])
    shown = subprocess.run([program, path], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0].startswith("GPU-0, ") and shown[0].endswith("s old: power=250 watts used=8589934592 bytes")
    assert shown[1].endswith("s old: used=1 bytes")
    another_version(path)
    refused = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "of another version" in refused.stderr
