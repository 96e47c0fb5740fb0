"""The README is run as it is printed: its blocks in order, in one home, against a daemon and engines that are real.

How its blocks are read:

- A `console` block holds commands after `$ ` and below each what it prints. `poolmgr serve` goes on running, as in a
  terminal of its own, once it has printed what it should; every other command has to end, with 0 unless an error is
  printed. Commands run in one home directory, through a shell, as a reader's do.
- A `python` or `toml` block whose first line is `# NAME` is saved as NAME; a `json` block, which can have no such line,
  as the name in backquotes that ends the line before it.
- Any other block (`sh`, `text`) is not run.

Printed lines have to come in this order. A line `...` stands for any number of lines, `...` in a line for any text,
runs of blanks for one. A number of three digits or more, or a long hexadecimal id, differs from run to run: it stands
for what this run shows in its place, here and wherever the README prints it again, in commands too.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.daemon import eventually, processes_of

README = Path(__file__).resolve().parent.parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
VARYING = re.compile(r"\b(?:[0-9a-f]{16,}|\d{3,})\b")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ANY = "..."
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    text: str


def blocks(markdown: str) -> list[Block]:
    return [Block(of[1], _named(markdown[: of.start()], of[2]) if of[1] == "json" else of[2])
            for of in BLOCK.finditer(markdown)]  # fmt: skip


def _named(before: str, text: str) -> str:
    name = re.search(r"`([\w.]+)`:\s*\Z", before)
    assert name, "a json block without a name before it"
    return f"# {name[1]}\n{text}"


@dataclass
class Shown:
    """What this run showed in the place of each number that the README prints."""

    values: dict[str, str] = field(default_factory=dict)

    def in_command(self, command: str) -> str:
        return VARYING.sub(lambda match: self.values.get(match[0], match[0]), command)

    def matches(self, printed: str, line: str) -> bool:
        """Whether `line` is what the README prints; if so, its new numbers are kept."""
        groups: list[str] = []
        parts = re.split(rf"({re.escape(ANY)}|{VARYING.pattern}|\s+)", printed.strip())
        pattern = "".join(self._pattern(part, groups) for part in parts)
        found = re.fullmatch(pattern, re.sub(r"\s+", " ", line.strip()))
        if found:
            self.values.update(zip(groups, found.groups(), strict=True))
        return found is not None

    def _pattern(self, part: str, groups: list[str]) -> str:
        if part == ANY:
            return ".*"
        if part.isspace():
            return " "
        if not VARYING.fullmatch(part) or part in self.values:
            return re.escape(self.values.get(part, part))
        if part in groups:
            return rf"\{groups.index(part) + 1}"
        groups.append(part)
        return rf"({VARYING.pattern})"

    def missing(self, printed: list[str], lines: list[str]) -> str | None:
        """The first printed line that is not there in its place; None when all are."""
        position, anywhere = 0, False
        for wanted in printed:
            if wanted.strip() == ANY:
                anywhere = True
                continue
            reach = range(position, len(lines) if anywhere else min(position + 1, len(lines)))
            at = next((index for index in reach if self.matches(wanted, lines[index])), None)
            if at is None:
                return wanted
            position, anywhere = at + 1, False
        return None if anywhere or position == len(lines) else f"the end, before {lines[position]!r}"


def commands(console: str) -> Iterator[tuple[str, list[str]]]:
    """(command, the lines that it prints)."""
    command, printed = "", list[str]()
    for line in console.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, printed
            command, printed = line[2:], []
        else:
            printed.append(line)
    yield command, printed


class Reader:
    """Somebody who does what the README says."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.shown = Shown()
        self.daemons: list[subprocess.Popen[str]] = []
        self.environment = {
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),  # root's state would be the host's
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "POOL_MANAGERD_ADDR": f"127.0.0.1:{free_port()}",
            "POOL_MANAGERD_OBSERVABILITY_LOG_FORMAT": "console",  # as on a reader's terminal
        }

    def read(self, block: Block) -> None:
        do: dict[str, Callable[[str], None]] = {"console": self.run, "python": self.save, "toml": self.save}
        do["json"] = self.save_bare
        if block.language in do:
            do[block.language](block.text)

    def save(self, text: str) -> None:
        name = re.match(r"# ([\w.-]+)\n", text)
        assert name, f"the first line of a block says its name: {text}"
        (self.home / name[1]).write_text(text)

    def save_bare(self, text: str) -> None:
        """Without the line that names it."""
        line, _, rest = text.partition("\n")
        (self.home / line.removeprefix("# ")).write_text(rest)

    def run(self, console: str) -> None:
        for command, printed in commands(console):
            if command.startswith("poolmgr serve"):
                self.serve(command, printed)
            else:
                self.call(command, printed)

    def call(self, command: str, printed: list[str]) -> None:
        real = self.shown.in_command(command)
        done = subprocess.run(
            ["bash", "-c", real], cwd=self.home, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
        )  # fmt: skip
        missing = self.shown.missing(printed, done.stdout.splitlines())
        assert missing is None, f"$ {real}\nshould print {missing!r}, but printed:\n{done.stdout}"
        fails = any(line.startswith("error: ") for line in printed)
        assert bool(done.returncode) == fails, f"$ {real}\nended with {done.returncode}:\n{done.stdout}"

    def serve(self, command: str, printed: list[str]) -> None:
        for before in self.daemons:  # the terminal's prompt comes back only then
            assert before.wait(SECONDS) == 0
        daemon = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.home, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0,
        )  # fmt: skip
        self.daemons.append(daemon)
        assert daemon.stderr is not None
        lines = list[str]()
        for line in daemon.stderr:
            lines.append(COLOUR.sub("", line))
            if self.shown.missing(printed, lines[-1:]) is None:
                return
        raise AssertionError(f"$ {command}\ndid not print {printed}, but:\n{''.join(lines)}")

    def leave(self) -> None:
        """Whatever happened: no daemon and no engine stays."""
        for daemon in self.daemons:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait(SECONDS)
            assert daemon.stderr is not None
            daemon.stderr.close()
        for process in processes_of(self.home):
            process.kill()


def free_port() -> int:
    """Below the range out of which the kernel gives ports to others while no daemon listens, by process of pytest."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    someone = Reader(tmp_path)
    yield someone
    someone.leave()


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.behaviour("PRE-1", "PROC-7", "PROC-8", "LIVE-3", "DRN-1", "DRN-5", "LEASE-5", "CFG-1", "CFG-3")
def test_whoever_does_what_the_readme_says_sees_what_it_says(reader: Reader) -> None:
    for block in blocks(README.read_text()):
        reader.read(block)
    for daemon in reader.daemons:
        assert daemon.wait(SECONDS) == 0
    eventually(lambda: not processes_of(reader.home), SECONDS, lambda: processes_of(reader.home))


# The reader of the README must be able to fail.


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        (["state READY"], ["state STOPPED"]),
        (["one", "two"], ["one"]),
        (["one", "two"], ["two", "one"]),
        (["one"], ["one", "two"]),
        (["one", ANY, "three"], ["one", "two"]),
        (["pid 1111", "pid 1111"], ["pid 2000", "pid 3000"]),
        (["1111 is 1111"], ["2000 is 3000"]),
        (["2/2 free"], ["1/2 free"]),
    ],
)
def test_output_that_differs_from_the_printed_one_is_told(printed: list[str], lines: list[str]) -> None:
    assert Shown().missing(printed, lines) is not None


def test_a_printed_number_stands_for_what_was_shown_in_its_place() -> None:
    shown = Shown()
    printed = ["pool chat", ANY, "pid   1234 of chat.0123456789abcdef", ANY]
    assert shown.missing(printed, ["pool chat", "more", "pid 77777 of chat.fedcba9876543210", "", "end"]) is None
    assert shown.in_command("kill -9 1234 chat.0123456789abcdef 5678") == "kill -9 77777 chat.fedcba9876543210 5678"
    assert shown.missing(["pid 1234"], ["pid 77778"]) == "pid 1234"


@pytest.mark.parametrize("text", ["```console\n$ false\n```\n", "```console\n$ echo one\ntwo\n```\n"])
def test_a_command_that_fails_or_prints_something_else_fails_the_readme(reader: Reader, text: str) -> None:
    (block,) = blocks(text)
    with pytest.raises(AssertionError, match=r"ended with 1|should print 'two'"):
        reader.read(block)
