"""The lease log on real files: killed, cut, flipped, full and failing."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from store_support import BOOT, NOW, ROOT, end, lease, newest, opened, record

from poolmgr.adapters.store import leaselog, segment
from poolmgr.adapters.store.leaselog import FILES, LeaseLog, read
from poolmgr.adapters.store.limits import KEPT_ENDED
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.lease import KeptLeases, Lease

PAGE = 4096
SMALL = 2 * PAGE
KILLS = 40


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that are full soon."""
    monkeypatch.setattr(leaselog, "SEGMENT_SIZE", SMALL)


def begin(directory: Path, boot: str = BOOT, now: float = NOW) -> tuple[LeaseLog, KeptLeases]:
    found = read(directory, boot, now)
    return LeaseLog.begin(directory, found, boot, found.epoch + 1, 0), found.kept


def known_place(directory: Path) -> Path:
    """One in which the leases are known: it was begun in an earlier boot."""
    begin(directory, boot="boot-0")[0].close()
    begin(directory)[0].close()
    return directory


def kept(directory: Path, now: float = NOW) -> KeptLeases:
    return read(directory, BOOT, now).kept


def live_names(found: KeptLeases) -> list[str]:
    return [each.lease_id.removeprefix("id-") for _, each in found.live]


def in_use(directory: Path) -> Path:
    (path,) = [directory / name for name in FILES if any((directory / name).read_bytes()[:8])]
    return path


def grant(log: LeaseLog, *names: str) -> None:
    log.record([("chat", lease(name)) for name in names], [])


# Two files in turn.


@pytest.mark.behaviour("LEASE-4")
@pytest.mark.parametrize("seed", range(8))
def test_over_any_number_of_full_segments_what_is_read_is_what_was_recorded(tmp_path: Path, small: None, seed: int):
    chance = random.Random(seed)
    log, _ = begin(known_place(tmp_path))
    live: dict[str, tuple[str, Lease]] = {}
    ends = []
    files = set()
    for number in range(1500):
        files.add(in_use(tmp_path)) if number % 50 == 0 else None
        if chance.random() < 0.5 or not live:
            pool, new = chance.choice(["a", "b"]), lease(str(number), fence=number)
            log.record([(pool, new)], [])
            live[new.lease_id] = (pool, new)
        else:
            gone = end(chance.choice(list(live)).removeprefix("id-"))
            log.record([], [gone])
            del live[gone.lease_id]
            ends.append(gone)
        if chance.random() < 0.01:
            log.close()
            log, found = begin(tmp_path)
            assert found == KeptLeases(True, tuple(live.values()), tuple(ends[-KEPT_ENDED:]))
    log.close()
    assert kept(tmp_path) == KeptLeases(True, tuple(live.values()), tuple(ends[-KEPT_ENDED:]))
    assert len(files) == 2


def test_a_segment_grows_with_the_leases_that_live_and_is_never_more_than_half_full_at_its_beginning(
    tmp_path: Path, small: None
):
    log, _ = begin(known_place(tmp_path))
    grant(log, *[str(number) for number in range(500)])
    bytes_live = sum(len(segment.encode_grant("chat", lease(str(number)))) for number in range(500))
    sizes = [(tmp_path / name).stat().st_size for name in FILES]
    assert max(sizes) >= 2 * bytes_live > SMALL
    assert max(sizes) < 8 * bytes_live
    log.close()
    assert len(kept(tmp_path).live) == 500


def test_only_the_two_files_are_ever_there_and_both_have_their_room_from_the_beginning(tmp_path: Path):
    log, _ = begin(tmp_path)
    for number in range(20_000):
        log.record([("chat", lease(str(number)))], [end(str(number))])
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES)
    for name in FILES:
        status = (tmp_path / name).stat()
        assert status.st_size == leaselog.SEGMENT_SIZE and status.st_blocks * 512 >= leaselog.SEGMENT_SIZE


def test_a_batch_of_any_size_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, _ = begin(tmp_path)
    writes = counted_writes(monkeypatch)
    with log:
        for number in range(64):
            grant(log, str(number))
    assert len(writes) == 1
    with log:
        pass
    assert len(writes) == 1
    log.close()


def test_a_record_that_cannot_be_written_at_all_leaves_nothing_behind(tmp_path: Path):
    log, _ = begin(known_place(tmp_path))
    with pytest.raises(UnicodeEncodeError):
        grant(log, "a", "\ud800")
    grant(log, "b")
    log.close()
    assert live_names(kept(tmp_path)) == ["b"]


# Crashes between and within writes.


class KilledError(BaseException):
    """SIGKILL: nothing of this process runs any more."""


def counted_writes(
    monkeypatch: pytest.MonkeyPatch, at: int = 0, outcome: Callable[[int, bytes, int], int] | None = None
) -> list[int]:
    """The lengths of all writes; the one with the number `at` goes to `outcome` in place of the kernel."""
    lengths: list[int] = []
    write = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        lengths.append(len(data))
        if len(lengths) == at and outcome is not None:
            return outcome(descriptor, data, offset)
        return write(descriptor, data, offset)

    monkeypatch.setattr(leaselog.os, "pwrite", pwrite)
    return lengths


@pytest.mark.behaviour("LEASE-4")
@pytest.mark.parametrize("pages", [0, 1])
def test_a_kill_at_any_write_or_after_a_page_of_it_loses_nothing_that_was_acknowledged(
    tmp_path: Path, small: None, pages: int
):
    """Each write that recording makes is cut after `pages` pages, over two changes of the segment."""
    write = os.pwrite
    number, cut = 0, 0
    while True:
        number += 1
        directory = tmp_path / str(number)
        directory.mkdir()
        log, _ = begin(known_place(directory))
        acknowledged: list[str] = []

        def killed(descriptor: int, data: bytes, offset: int) -> int:
            until = -(-(offset + 1) // PAGE) * PAGE + (pages - 1) * PAGE  # where the page ends that it begins in
            write(descriptor, data[: max(0, until - offset) if pages else 0], offset)
            raise KilledError

        with pytest.MonkeyPatch.context() as patch:
            writes = counted_writes(patch, number, killed)
            try:
                for name in range(90):
                    grant(log, f"{name}")
                    acknowledged.append(f"{name}")
                    if name % 2:
                        gone = acknowledged[-2]
                        log.record([], [end(gone)])
                        acknowledged.remove(gone)
            except KilledError:
                cut += 1
        log.close()
        found = kept(directory)
        assert found.known, f"write {number}"
        assert set(acknowledged) - set(live_names(found)) <= set(acknowledged[-2:-1]), f"write {number}"
        assert len(set(live_names(found)) - set(acknowledged)) <= 1, f"write {number}"
        shutil.rmtree(directory)
        if len(writes) < number:
            break
    assert cut >= 130


CHILD = """
import sys
from pathlib import Path
from poolmgr.adapters.store.leaselog import LeaseLog, read
from poolmgr.model.lease import EndedLease, Lease, LeaseOutcome

directory, life, planted = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
found = read(directory, "boot-1", 500.0)
log = LeaseLog.begin(directory, found, "boot-1", found.epoch + 1, 0)
live = []
number = 0
while True:
    names = [f"{life}-{number + more}" for more in range(1 + number % 7)]
    number += len(names)
    if planted == "late" and number % 5 == 0:
        log.__enter__()  # a batch that is not over when its grants are acknowledged
    with log:
        for name in names:
            log.record([("chat", Lease(name, "t" * (number % 400), "h", 15.0, 1, number, "e", 1.0))], [])
    print("granted", *names, flush=True)
    live += names
    if len(live) > 40:
        gone, live = live[:30], live[30:]
        print("ending", *gone, flush=True)
        if planted != "endless":
            log.record([], [EndedLease(name, "t", LeaseOutcome.RELEASED) for name in gone])
        print("ended", *gone, flush=True)
"""


def kill_again_and_again(directory: Path, kills: int, planted: str = "") -> tuple[list[str], int]:
    """(what was acknowledged and is not so, how many ends were acknowledged) over so many lives of a process."""
    known_place(directory)
    chance = random.Random(4)
    said: dict[str, set[str]] = {"granted": set(), "ending": set(), "ended": set()}
    wrong = []
    for life in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(directory), str(life), planted],
            env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with child:
            lines = [child.stdout.readline() for _ in range(chance.randrange(1, 400))]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        for line in lines:
            word, *names = line.split()
            said[word] |= set(names)
        found = kept(directory)
        live = {each.lease_id for _, each in found.live}
        wrong += ["unknown"] * (not found.known)
        wrong += [f"lost {name}" for name in said["granted"] - said["ending"] - live]
        wrong += [f"still live {name}" for name in said["ended"] & live]
    return wrong, len(said["ended"])


@pytest.mark.behaviour("LEASE-4")
def test_a_process_that_is_killed_at_any_time_has_lost_no_grant_and_no_end_that_it_acknowledged(tmp_path: Path):
    wrong, ends = kill_again_and_again(tmp_path, KILLS)
    assert wrong == []
    assert ends > 1000


@pytest.mark.parametrize(("planted", "word"), [("late", "lost"), ("endless", "still live")])
def test_a_process_that_acknowledges_what_it_has_not_recorded_is_found_out_by_killing_it(
    tmp_path: Path, planted: str, word: str
):
    wrong, _ = kill_again_and_again(tmp_path, 5, planted)
    assert any(each.startswith(word) for each in wrong)


# Cut, flipped, lost.


def copied(directory: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(directory, target)
    return target


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A log that its process left: 200 grants, one write each, of which the first 50 have ended."""
    directory = tmp_path / "left"
    directory.mkdir()
    log, _ = begin(known_place(directory))
    for number in range(200):
        grant(log, str(number))
    log.record([], [end(str(number)) for number in range(50)])
    log.close()
    return directory


def test_a_bit_that_flips_anywhere_is_found_and_every_other_record_is_taken(left: Path, tmp_path: Path):
    whole = kept(left)
    assert whole.known and len(whole.live) == 150
    chance = random.Random(9)
    content = in_use(left).read_bytes()
    used = len(content.rstrip(b"\0"))
    places = (*range(segment.HEADER_SIZE), *(chance.randrange(used) for _ in range(120)), used + 3, len(content) - 1)
    for at in places:
        directory = copied(left, tmp_path / "flipped")
        flipped = bytearray(content)
        flipped[at] ^= 1 << chance.randrange(8)
        (directory / in_use(left).name).write_bytes(flipped)
        found = kept(directory)
        if found.known:  # the header is shorter than its place
            assert found == whole and 80 <= at < segment.HEADER_SIZE, at
        elif at >= segment.HEADER_SIZE:
            assert len(set(found.live) ^ set(whole.live)) + len(set(found.ended) ^ set(whole.ended)) <= 2, at


@pytest.mark.parametrize("lost", [FILES[:1], FILES[1:], FILES])
def test_files_that_are_gone_or_cut_are_not_taken_for_an_earlier_state(
    left: Path, tmp_path: Path, lost: tuple[str, ...]
):
    whole, name = kept(left), in_use(left).name
    for size in (None, 0, 50, segment.HEADER_SIZE, PAGE, PAGE * 10 + 17, leaselog.SEGMENT_SIZE - 1):
        directory = copied(left, tmp_path / "cut")
        for each in lost:
            if size is None:
                (directory / each).unlink()
            else:
                os.truncate(directory / each, size)
        found = kept(directory)
        if name in lost:
            assert not found.known
            assert set(found.live) <= {("chat", lease(str(number))) for number in range(200)}
        else:
            assert found == whole


def test_of_two_files_that_both_have_a_header_the_newer_counts_and_a_half_header_is_no_file_to_trust(left: Path):
    whole, newer = kept(left), in_use(left)
    (older,) = [left / name for name in FILES if name != newer.name]
    content = bytearray(newer.read_bytes())
    earlier = segment.decode_header(bytes(content))
    header = segment.encode_header(leaselog.replace(earlier, sequence=earlier.sequence - 1))
    older.write_bytes(header + bytes(leaselog.SEGMENT_SIZE - len(header)))  # killed before it was wiped
    assert kept(left) == whole
    content[20] ^= 1
    newer.write_bytes(content)
    assert not kept(left).known


def test_damage_stays_known_until_every_lease_that_may_be_out_is_over(left: Path):
    os.truncate(in_use(left), PAGE)
    found = []
    for now in (NOW, NOW + 1, NOW + 359, NOW + 360):
        log, kept_now = begin(left, now=now)
        found.append(kept_now.known)
        log.close()
    assert found == [False, False, False, True]


@pytest.mark.parametrize("over", [True, False], ids=["over the end of a page", "within a page"])
def test_a_record_cut_at_a_page_was_promised_to_nobody_and_one_that_lost_its_end_within_a_page_is_damaged(
    tmp_path: Path, over: bool
):
    log, _ = begin(known_place(tmp_path))
    names = [str(number) for number in range(60)]
    offsets = [segment.HEADER_SIZE]
    for name in names:
        grant(log, name)
        offsets.append(offsets[-1] + len(segment.encode_grant("chat", lease(name))))
    log.close()
    crossing = next(index for index, offset in enumerate(offsets) if offset > PAGE) - 1
    last, cut = (crossing, PAGE) if over else (crossing - 1, offsets[crossing] - 5)
    content = bytearray(in_use(tmp_path).read_bytes())
    assert any(content[cut - 5 : cut])
    content[cut:] = bytes(len(content) - cut)
    in_use(tmp_path).write_bytes(content)
    found = kept(tmp_path)
    assert live_names(found) == names[:last]
    assert found.known is over


# Full and failing.


@pytest.mark.parametrize("how", ["error", "short"])
def test_a_write_that_fails_voids_its_grants_and_the_next_goes_into_a_new_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    write = os.pwrite

    def fails(descriptor: int, data: bytes, offset: int) -> int:
        if how == "error":
            raise OSError(errno.EIO, "Input/output error")
        return write(descriptor, data[:-7], offset)

    log, _ = begin(known_place(tmp_path))
    grant(log, "a", "b")
    before = in_use(tmp_path)
    with monkeypatch.context() as patch:
        counted_writes(patch, 1, fails)
        with pytest.raises(EnvironmentFault, match="leases cannot be recorded") as failed:
            log.record([("chat", lease("c")), ("chat", lease("d"))], [end("a")])
    assert failed.value.reason is Reason.STORE_UNAVAILABLE and failed.value.numbers["errno"] == errno.EIO
    assert live_names(kept(tmp_path)) == ["a", "b"]
    grant(log, "e")
    assert in_use(tmp_path) != before
    log.record([], [end("a")])
    log.close()
    assert live_names(kept(tmp_path)) == ["b", "e"] and kept(tmp_path).known


def test_a_segment_that_cannot_be_changed_leaves_the_old_one_and_the_grant_is_void(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
):
    def fails(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    for step in range(1, 4):  # the wipe, the body, the header
        directory = tmp_path / str(step)
        directory.mkdir()
        log, _ = begin(known_place(directory))
        number = 0
        while log._used[log._current] + 200 < SMALL:
            grant(log, str(number))
            number += 1
        recorded = [str(each) for each in range(number)]
        with monkeypatch.context() as patch:
            writes = counted_writes(patch, step, fails)
            with pytest.raises(EnvironmentFault):
                grant(log, "void" * 20)
        assert len(writes) == step
        assert live_names(kept(directory)) == recorded and kept(directory).known
        grant(log, "next" * 20)
        log.close()
        assert live_names(kept(directory)) == [*recorded, "next" * 20]


def test_without_room_to_grow_grants_are_refused_at_last_and_ends_go_on(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
):
    log, _ = begin(known_place(tmp_path))

    def no_room(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(leaselog.os, "posix_fallocate", no_room)
    granted: list[str] = []

    def fill() -> None:
        for number in range(1000):
            grant(log, str(number))
            granted.append(str(number))

    with pytest.raises(EnvironmentFault) as failed:
        fill()
    assert failed.value.numbers["errno"] == errno.ENOSPC
    assert 40 <= len(granted) < SMALL // 100
    for name in granted[:20]:
        log.record([], [end(name)])
    grant(log, "again")
    log.close()
    assert live_names(kept(tmp_path)) == [*granted[20:], "again"]


@contextmanager
def tmpfs(directory: Path, size: str) -> Iterator[Path]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill_up(directory: Path) -> Path:
    """A file that leaves no byte free."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    return filler


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted by root")
async def test_on_a_disk_that_is_really_full_leases_go_on_changes_are_refused_and_a_new_daemon_starts(tmp_path: Path):
    with tmpfs(tmp_path / "small", "8m") as disk:
        store = await opened(disk / "state")
        for generation in range(1, 4):
            await store.put_pool(record(generation))
        filler = fill_up(disk)
        refused, last = 0, 3
        for generation in range(4, 200):  # until the room that the WAL has already is used up
            try:
                await store.put_pool(record(generation))
                last = generation
            except EnvironmentFault as fault:
                refused += "the disk is full" in fault.message
        assert refused > 100
        number = 0
        for number in range(20_000):  # more than two segments
            with store.batch():
                store.record([("chat", lease(str(number)))], [])
                store.record([], [end(str(number - 5))] if number >= 5 else [])
        live = {f"id-{each}" for each in range(number - 4, number + 1)}
        assert await newest(store) == [("chat", last)]
        store.close()
        for _ in range(3):
            store = await opened(disk / "state")
            assert {each.lease_id for _, each in store.kept_leases().live} == live
            assert await newest(store) == [("chat", last)]
            store.record([("chat", lease("x"))], [end("x")])
            store.close()
        filler.unlink()
        store = await opened(disk / "state")
        await store.put_pool(record(500))
        assert await newest(store) == [("chat", 500)]
        store.close()


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted by root")
async def test_a_new_place_on_a_full_disk_is_refused_in_words_that_say_so(tmp_path: Path):
    with tmpfs(tmp_path / "small", "1m") as disk:
        with pytest.raises(EnvironmentFault, match="full") as refused:
            await opened(disk / "state")
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
