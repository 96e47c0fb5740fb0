"""What every test shares: the count of skips, which in CI are failures unless they name their reason."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

ALLOWED_SKIPS = ("gpu", "needs_root")
_skipped: dict[str, tuple[str, bool]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        allowed = any(item.get_closest_marker(name) for name in ALLOWED_SKIPS)
        _skipped[item.nodeid] = (str(report.longrepr), allowed)
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("CI") and any(not allowed for _, allowed in _skipped.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    holes = [name for name, (_, allowed) in _skipped.items() if not allowed]
    named = len(_skipped) - len(holes)
    if os.environ.get("CI") and holes:
        terminalreporter.write_line(f"skipped without a reason that CI allows: {', '.join(holes)}", red=True)
    terminalreporter.write_line(f"skips for a named reason (gpu, needs_root): {named}; others: {len(holes)}")
