"""A pool's spec from a file and flags."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import typer
from google.protobuf.json_format import ParseDict, ParseError
from pydantic import ValidationError

from poolmgr.cli.flags import SpecFlags, StrategyChoice
from poolmgr.config.schema import Section
from poolmgr.convert.pool import spec_to_proto
from poolmgr.model.pool import PoolSpec
from poolmgr.v1 import pool_pb2 as pb

SPLIT_MODES: Final = {"none": pb.SPLIT_NONE, "auto": pb.SPLIT_AUTO}


def spec_from(file: Path | None, flags: SpecFlags) -> pb.PoolSpec:
    """What the file says, with the flags over it. Raises typer.BadParameter."""
    return _over(spec_from_file(file) if file else pb.PoolSpec(), flags)


def updated_spec(current: pb.PoolSpec, file: Path | None, flags: SpecFlags) -> pb.PoolSpec | None:
    """The flags over the file, or over the current spec where there is none. None: nothing is said of a spec."""
    if file is None and flags == SpecFlags():
        return None
    return spec_from(file, flags) if file else _over(current, flags)


def strategy_from(choice: StrategyChoice) -> pb.ReloadStrategy.ValueType:
    return pb.ReloadStrategy.Value(f"RELOAD_{choice.name}")


def split_from(text: str) -> pb.Split:
    """`none`, `auto`, or `explicit:` and the shares. Raises typer.BadParameter."""
    if text in SPLIT_MODES:
        return pb.Split(mode=SPLIT_MODES[text])
    mode, _, shares = text.partition(":")
    try:
        ratios = [float(share) for share in shares.split(",")] if mode == "explicit" else []
    except ValueError:
        ratios = []
    if not ratios:
        raise typer.BadParameter(f"{text!r} is not none, auto, or like explicit:3,1", param_hint="--split")
    return pb.Split(mode=pb.SPLIT_EXPLICIT, ratios=ratios)


def _over(base: pb.PoolSpec, flags: SpecFlags) -> pb.PoolSpec:
    spec = pb.PoolSpec()
    spec.CopyFrom(base)
    spec.MergeFrom(
        pb.PoolSpec(
            engine=_engine(flags, spec),
            # The daemon has another working directory.
            model=pb.Model(path=os.path.abspath(flags.model) if flags.model else "", context_length=flags.context or 0),
            command=flags.command or "",
            env=_pairs(flags.env, "--env"),
            slots=flags.slots or 0,
            device_mask=flags.devices or "",
            port=flags.port or 0,
            labels=_pairs(flags.labels, "--label"),
            restart=pb.RestartMode.Value(f"RESTART_{flags.restart.name}") if flags.restart else pb.RESTART_UNSPECIFIED,
            preload=flags.preload,
        )
    )
    if base.model.path and spec.model.path != base.model.path:
        spec.model.digest = ""  # it was that of the other model
    if flags.split:
        spec.split.CopyFrom(split_from(flags.split))
    if flags.args:
        spec.ClearField("args")
        spec.args.extend(flags.args)
    return spec


def spec_from_file(file: Path) -> pb.PoolSpec:
    """TOML as in the configuration's [pools.ID]; anything else is JSON as `--json` shows a spec."""
    try:
        text = file.read_text("utf-8")
        if file.suffix == ".toml":
            return spec_to_proto(_declared(tomllib.loads(text)))
        return ParseDict(json.loads(text), pb.PoolSpec())
    except (OSError, ValueError, ParseError) as error:
        raise typer.BadParameter(f"{file}: {error}") from error


class _Declared(Section):
    spec: PoolSpec


def _declared(document: dict[str, Any]) -> PoolSpec:
    try:
        # Through JSON, as the configuration does it: enums by name, no number from text.
        return _Declared.model_validate_json(json.dumps({"spec": document}, default=str)).spec
    except ValidationError as error:
        problems = (f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in error.errors())
        raise ValueError("; ".join(problems)) from error


def _engine(flags: SpecFlags, spec: pb.PoolSpec) -> pb.Engine.ValueType:
    """As said; else what a model or a command means where the file does not say either."""
    if flags.engine:
        return pb.Engine.Value(f"ENGINE_{flags.engine.name}")
    if spec.engine:
        return spec.engine
    if flags.model or spec.model.path:
        return pb.ENGINE_LLAMACPP
    if flags.command or spec.command:
        return pb.ENGINE_COMMAND
    raise typer.BadParameter("say what to run: --model for llama.cpp, --command for any program, or --file")


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    pairs = dict[str, str]()
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
        pairs[name] = value
    return pairs
