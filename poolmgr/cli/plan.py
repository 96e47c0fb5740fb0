"""`poolmgr plan …`: what a model needs, how it would be split, where it would go. Changes nothing."""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from poolmgr.cli.session import Session, command

if TYPE_CHECKING:
    from poolmgr.v1 import placement_pb2, pool_pb2

app = typer.Typer(
    no_args_is_help=True, help="See what a model needs, how it would be split, and where it would go. Changes nothing."
)

_SIZE: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(?:([KMGT])i?)?B?", re.IGNORECASE)
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class EngineChoice(StrEnum):
    LLAMACPP = "llamacpp"
    VLLM = "vllm"
    TGI = "tgi"
    TRITON = "triton"
    COMMAND = "command"


class ObjectiveChoice(StrEnum):
    MIN_LATENCY = "min-latency"
    MIN_BOTTLENECK = "min-bottleneck"
    MAX_CONTEXT = "max-context"
    BALANCED = "balanced"


def _bytes(text: str | None) -> int:
    """ "24GiB" in bytes; K, M, G and T are powers of 1024. Raises typer.BadParameter."""
    match = _SIZE.fullmatch(text.strip()) if text else None
    if text and match is None:
        raise typer.BadParameter(f"{text!r} is no size like 24GiB")
    return int(float(match[1]) * 2 ** _UNITS[(match[2] or "").upper()]) if match else 0


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, or a folder of one.")]
MaybeModel = Annotated[Path | None, typer.Argument(metavar="MODEL", help="A model file, or a folder of one.")]
Request = Annotated[Path | None, typer.Option("--request", metavar="FILE", help="JSON of the API's request instead.")]
Context = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Tokens per slot; else the model's own.")]
Slots = Annotated[int, typer.Option(min=1, max=4096, help="Requests at once.")]
CacheType = Annotated[str, typer.Option(help="Of the KV cache, as the engine names it: f16, q8_0.")]
Engine = Annotated[EngineChoice, typer.Option(help="vllm and tgi split into equal shares, the others by layers.")]
Objective = Annotated[
    ObjectiveChoice | None, typer.Option(help="Else min-latency for one slot, min-bottleneck for several.")
]


@command(app)
def split(
    session: Session,
    model: MaybeModel = None,
    request: Request = None,
    context: Context = 0,
    slots: Slots = 1,
    cache_type: CacheType = "",
    objective: Objective = None,
    max_devices: Annotated[int, typer.Option(min=0, max=64, help="That may be used; 0: no limit.")] = 0,
    engine: Engine = EngineChoice.LLAMACPP,
) -> None:
    """Plans the best split of a model over this host's GPUs, or, with --request, over any; that needs no daemon.

    A model that does not fit is an answer: `fits` is false, and `refusal` says what is missing.
    """
    from poolmgr.cli import show_plan
    from poolmgr.v1 import placement_pb2 as pb

    if request is not None:
        _alone(model, context, slots > 1, cache_type, objective, max_devices, engine != EngineChoice.LLAMACPP)
        session.answer(_offline_split(request), show_plan.split)
        return
    asked = pb.PlanSplitRequest(
        model_path=_path(model),
        context_length=context,
        slots=slots,
        cache_type=cache_type,
        objective=_objective(objective),
        max_devices=max_devices,
        engine=_engine(engine),
    )
    with session.client() as client:
        session.answer(client.plan_split(asked), show_plan.split)


@command(app)
def place(
    session: Session,
    model: MaybeModel = None,
    request: Request = None,
    devices: Annotated[str, typer.Option(metavar="MASK", help="As of a pool: 0,1 or UUIDs, all, auto.")] = "auto",
    split: Annotated[str, typer.Option(metavar="MODE", help="none, auto, or explicit:3,1.")] = "none",
    context: Context = 0,
    slots: Slots = 1,
    cache_type: CacheType = "",
    size: Annotated[
        str | None, typer.Option("--bytes", metavar="SIZE", help="Without a model: 24GiB a device.")
    ] = None,
    count: Annotated[int, typer.Option(min=0, max=64, help="Devices; 0: as many as it takes.")] = 0,
    spread: Annotated[bool, typer.Option("--spread", help="The emptiest device first.")] = False,
    evict: Annotated[bool, typer.Option("--evict", help="Also find idle pools to stop. Stops none.")] = False,
    objective: Objective = None,
    engine: Engine = EngineChoice.LLAMACPP,
) -> None:
    """Tells which GPUs a model would be given now, and what became of every other one. Asks the daemon."""
    from poolmgr.cli import show_plan
    from poolmgr.cli.requests import read_request
    from poolmgr.cli.spec import split_from
    from poolmgr.v1 import placement_pb2 as pb

    wanted = _bytes(size)
    if request is not None:
        _alone(model, wanted, context, slots > 1, cache_type, objective, count, spread, evict)
        _alone(devices != "auto", split != "none", engine != EngineChoice.LLAMACPP)
        asked = read_request(request, pb.PlanPlacementRequest())
    else:
        asked = pb.PlanPlacementRequest(
            device_mask=devices,
            split=split_from(split),
            model_path="" if wanted else _path(model),
            context_length=context,
            slots=slots,
            cache_type=cache_type,
            bytes_per_device=wanted,
            device_count=count,
            objective=_objective(objective),
            engine=_engine(engine),
            preference=pb.PlanPlacementRequest.SPREAD if spread else pb.PlanPlacementRequest.BIN_PACK,
            evict=evict,
        )
    with session.client() as client:
        session.answer(client.plan_placement(asked), show_plan.placement)


@command(app)
def memory(
    session: Session,
    model: Model,
    context: Context = 0,
    slots: Slots = 1,
    cache_type: CacheType = "",
    engine: Engine = EngineChoice.LLAMACPP,
    learned: Annotated[
        bool, typer.Option("--learned", help="Ask the daemon, which has measured earlier runs.")
    ] = False,
) -> None:
    """Tells what a model needs, from its file's headers. Needs no daemon, but with --learned."""
    from poolmgr.cli import show_plan
    from poolmgr.v1 import placement_pb2 as pb

    asked = pb.EstimateMemoryRequest(
        model_path=_path(model), context_length=context, slots=slots, cache_type=cache_type, engine=_engine(engine)
    )
    if not learned:
        session.answer(_offline_estimate(asked), show_plan.memory)
        return
    with session.client() as client:
        session.answer(client.estimate_memory(asked), show_plan.memory)


@command(app)
def explain(session: Session, pool_id: Annotated[str, typer.Argument(metavar="POOL", help="The pool's id.")]) -> None:
    """Tells how a pool is split, and where it would be placed now, device by device."""
    from poolmgr.cli import show_plan
    from poolmgr.v1 import placement_pb2 as pb

    with session.client() as client:
        pool = client.get_pool(pool_id)
        spec = pool.spec
        asked = pb.PlanPlacementRequest(
            device_mask=spec.device_mask or "none",
            split=spec.split,
            model_path=spec.model.path,
            context_length=spec.model.context_length,
            slots=spec.slots,
            cache_type=spec.model.cache_type,
            engine=spec.engine,
        )
        session.answer(client.plan_placement(asked), lambda plan: show_plan.explanation(pool, plan))


def _offline_split(request: Path) -> placement_pb2.SplitPlan:
    """Raises PoolmgrError."""
    from poolmgr.cli.requests import read_request
    from poolmgr.convert.placement import split_query_from_proto
    from poolmgr.convert.split_plan import split_plan_to_proto
    from poolmgr.v1 import placement_pb2 as pb

    query = split_query_from_proto(read_request(request, pb.PlanSplitRequest()))
    from poolmgr import offline

    return split_plan_to_proto(offline.plan_split(query))


def _offline_estimate(request: placement_pb2.EstimateMemoryRequest) -> placement_pb2.MemoryEstimate:
    """Raises PoolmgrError."""
    from poolmgr.convert.placement import estimate_to_proto, memory_question_from_proto

    question = memory_question_from_proto(request)
    from poolmgr import offline

    return estimate_to_proto(offline.estimate_memory(question))


def _alone(*others: object) -> None:
    if any(others):
        raise typer.BadParameter("--request says it all: give nothing else of the question beside it")


def _path(model: Path | None) -> str:
    """The daemon has another working directory."""
    if model is None:
        raise typer.BadParameter("say which MODEL, or give --request FILE")
    return os.path.abspath(model)


def _objective(choice: ObjectiveChoice | None) -> placement_pb2.Objective.ValueType:
    from poolmgr.v1 import placement_pb2 as pb

    return pb.Objective.Value(choice.name) if choice else pb.OBJECTIVE_UNSPECIFIED


def _engine(choice: EngineChoice) -> pool_pb2.Engine.ValueType:
    from poolmgr.v1 import pool_pb2 as pb

    return pb.Engine.Value(f"ENGINE_{choice.name}")
