"""What every EngineKind keeps to: the real kinds and the scripted one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from poolmgr.adapters.engines import default_kinds
from poolmgr.adapters.probe import http_get_json, http_get_text
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.engine import EngineFacts, ExitRecord
from poolmgr.model.pool import EngineName, ModelSpec, PoolSpec, ProbeKind, ProbeSpec
from poolmgr.ports import EngineKind
from poolmgr.testing.fakes import ScriptedKind
from poolmgr.testing.gguf import write_tiny_llama

PORT = 41999


@dataclass
class Case:
    """A kind, a spec that it can run, and how to take away what it needs."""

    kind: EngineKind
    spec: PoolSpec
    break_it: Callable[[], None]


@pytest.fixture(params=[EngineName.COMMAND, EngineName.LLAMACPP, EngineName.VLLM, "scripted"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    kinds = default_kinds(http_get_json, get_text=http_get_text)
    program = tmp_path / "engine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    if request.param == EngineName.COMMAND:
        spec = PoolSpec(EngineName.COMMAND, command=str(program), args=("--port", "{port}"))
        return Case(kinds[EngineName.COMMAND], spec, program.unlink)
    if request.param == EngineName.LLAMACPP:
        model = tmp_path / "tiny.gguf"
        write_tiny_llama(model)
        return Case(kinds[EngineName.LLAMACPP], PoolSpec(EngineName.LLAMACPP, ModelSpec(str(model))), model.unlink)
    if request.param == EngineName.VLLM:
        configuration = tmp_path / "config.json"
        configuration.write_text("{}")
        spec = PoolSpec(EngineName.VLLM, ModelSpec(str(tmp_path)), command=str(program))
        return Case(kinds[EngineName.VLLM], spec, program.unlink)
    scripted = ScriptedKind()
    gone = ClientError(Reason.EXECUTABLE_NOT_FOUND, "gone")
    return Case(scripted, PoolSpec(EngineName.COMMAND), lambda: setattr(scripted, "refusal", gone))


@pytest.mark.behaviour("PRE-1")
def test_the_gates_let_a_sound_spec_through_and_close_with_a_typed_error_when_something_is_missing(case: Case) -> None:
    case.kind.validate(case.spec)
    case.kind.check(case.spec)
    case.break_it()
    with pytest.raises(ClientError) as refused:
        case.kind.check(case.spec)
    assert refused.value.reason in (Reason.EXECUTABLE_NOT_FOUND, Reason.MODEL_NOT_FOUND)


@pytest.mark.behaviour("PROC-1")
def test_a_command_line_is_absolute_whole_and_the_same_each_time(case: Case) -> None:
    argv, env = case.kind.render(case.spec, PORT)
    assert argv[0].startswith("/")
    assert str(PORT) in argv
    assert all(isinstance(part, str) for part in (*argv, *env, *env.values()))
    assert case.kind.render(case.spec, PORT) == (argv, env)
    assert sys.argv[0] not in env.values()  # nothing of our own process leaks in


@pytest.mark.behaviour("PRE-2")
def test_probes_ask_the_engine_on_loopback_at_its_port_within_the_time_given(case: Case) -> None:
    spec = replace(case.spec, readiness=ProbeSpec(ProbeKind.HTTP, path="/health"))
    for target in (case.kind.readiness(spec, PORT, 1.5), case.kind.liveness(spec, PORT, 1.5)):
        assert (target.host, target.port, target.timeout) == ("127.0.0.1", PORT, 1.5)


def test_a_death_that_the_log_does_not_explain_is_left_unexplained(case: Case) -> None:
    assert case.kind.diagnose(ExitRecord(signal=9, source="shim"), ("serving", "all is well")) is None


async def test_an_engine_that_says_nothing_of_itself_is_known_by_nothing(case: Case) -> None:
    facts = await case.kind.describe(case.spec, 1, 0.5)  # nobody listens on port 1
    assert facts in (EngineFacts(), EngineFacts("fake-1"))


@pytest.mark.behaviour("LIVE-2")
async def test_an_engine_that_cannot_be_asked_how_it_gets_on_is_a_fault_or_says_nothing_and_never_a_guess(
    case: Case,
) -> None:
    told, reason = None, None
    try:
        told = await case.kind.progress(case.spec, 1, 0.5)
    except EnvironmentFault as fault:
        reason = fault.reason
    assert told is None and reason in (None, Reason.UNREACHABLE)
