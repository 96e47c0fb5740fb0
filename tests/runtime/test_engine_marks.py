"""Whether an engine that runs was started for a spec: by its mark, which outlives the version that wrote it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core.starting import engine_arguments
from poolmgr.model.pool import EngineName, ModelSpec, PoolSpec, SplitMode, SplitSpec
from poolmgr.runtime.engine_host import mark_of

MASKED = PoolSpec(
    EngineName.LLAMACPP, ModelSpec("/m.gguf", context_length=4096), env={"A": "b"}, device_mask="0,1", slots=4
)
SPLITS = [
    SplitSpec(SplitMode.AUTO),
    SplitSpec(SplitMode.EXPLICIT, (3.0, 1.0)),
    SplitSpec(SplitMode.EXPLICIT, (1.0, 3.0)),
]


@pytest.mark.behaviour("PROC-6")
@pytest.mark.parametrize(
    ("spec", "mark"),  # as version 0.1 wrote them, before specs had a split
    [
        (
            PoolSpec(EngineName.COMMAND, command="sleep", args=("9",)),
            "413dd54298ee37523fa993fe0284b9ecd011989dc15c7cde3395384d4fc54e00",
        ),
        (MASKED, "946a4fb98a8ddff012019eaaaa183b8bf1344e4479273698f800a41e44d512db"),
    ],
)
def test_an_engine_of_an_earlier_version_is_still_known_by_its_mark(spec, mark):
    assert mark_of(spec) == mark


@pytest.mark.behaviour("DRN-2", "SPLIT-1")
def test_another_split_is_another_engine():
    specs = [MASKED, *(replace(MASKED, split=split) for split in SPLITS)]
    assert len({mark_of(spec) for spec in specs}) == len(specs)
    assert all(engine_arguments(spec) != engine_arguments(MASKED) for spec in specs[1:])
