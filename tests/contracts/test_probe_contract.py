"""What every Probe keeps to, the one over sockets and the scripted one."""

from __future__ import annotations

import asyncio

import pytest

from poolmgr.adapters.probe import NetworkProbe
from poolmgr.model.engine import ProbeOutcome, ProbeResult, ProbeTarget
from poolmgr.ports import Probe
from poolmgr.testing.fakes import ScriptedProbe


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    await writer.drain()
    writer.close()


@pytest.mark.behaviour("PRE-2")
@pytest.mark.parametrize("probe", [NetworkProbe(), ScriptedProbe()], ids=["network", "scripted"])
async def test_ok_is_what_was_asked_for(probe: Probe) -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        result = await probe(ProbeTarget("HTTP", "127.0.0.1", port, "/health", timeout=5.0))
    assert result.outcome is ProbeOutcome.OK


@pytest.mark.behaviour("PRE-2")
@pytest.mark.parametrize(
    "probe",
    [NetworkProbe(), ScriptedProbe(ProbeResult(ProbeOutcome.FAILED, "connection refused"))],
    ids=["network", "scripted"],
)
async def test_what_the_other_side_does_is_told_and_not_raised(probe: Probe) -> None:
    result = await probe(ProbeTarget("HTTP", "127.0.0.1", 1, "/health", timeout=5.0))
    assert result.outcome is ProbeOutcome.FAILED
    assert result.detail
