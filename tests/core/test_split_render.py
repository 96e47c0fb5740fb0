"""What engines are told, and that llama.cpp's own rounding gives exactly the planned layers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core.split_render import layered, llamacpp_layers
from poolmgr.model.plan import MAX_LAYERS

pytestmark = pytest.mark.behaviour("SPLIT-6")
DATA = Path(__file__).parent.parent / "data"
TABLE = DATA / "llamacpp_tensor_split.tsv"
ROWS = [line.split("\t") for line in TABLE.read_text().splitlines() if not line.startswith("#")]


def numbers(text, kind=int):
    return [kind(part) for part in text.split(",")]


def test_the_rule_gives_what_the_table_of_llamacpp_says():
    assert len(ROWS) > 250
    for layers, shares, given_layers in ROWS:
        assert llamacpp_layers(numbers(shares, float), int(layers)) == numbers(given_layers), shares


def test_the_table_is_what_its_program_computes():
    made = subprocess.run(
        ["sh", str(DATA / "llamacpp_tensor_split.sh")], input=TABLE.read_bytes(), capture_output=True, check=True
    )
    assert made.stdout == TABLE.read_bytes()


def test_fractions_that_look_right_do_not_give_the_planned_layers_which_is_why_counts_are_told():
    """The negative control of the table: rows where rounded shares come out as other layers than meant."""
    assert ["10", "0.1,0.2,0.3,0.4", "1,2,3,4"] in ROWS
    off = [row for row in ROWS if "." in row[1] and not exact(row)]
    assert len(off) > 20


def exact(row):
    shares, layers = numbers(row[1], float), int(row[0])
    return all(
        abs(share / sum(shares) * layers - count) < 1e-6 for share, count in zip(shares, numbers(row[2]), strict=True)
    )


@given(st.lists(st.integers(1, 200), min_size=2, max_size=15))
def test_layers_as_shares_come_out_as_they_were_planned(counts):
    if sum(counts) <= MAX_LAYERS:
        assert llamacpp_layers(counts) == counts
        assert "LLAMACPP" in layered(counts)


def test_layers_as_shares_come_out_for_every_number_of_layers():
    rng = Random(3)
    for layers in range(2, MAX_LAYERS + 1, 13):
        first = rng.randint(1, layers - 1)
        assert llamacpp_layers([first, layers - first]) == [first, layers - first]


def test_llamacpp_is_told_layers_by_device_and_that_all_are_on_devices():
    assert layered([17, 6, 18])["LLAMACPP"].args == (
        "--split-mode", "layer", "--tensor-split", "17,6,18", "--main-gpu", "0", "--n-gpu-layers", "41",
    )  # fmt: skip


def test_one_device_needs_no_shares():
    told = layered([33])
    assert told["LLAMACPP"].args == ("--split-mode", "none", "--main-gpu", "0", "--n-gpu-layers", "33")
    assert told["VLLM"].args == ("--tensor-parallel-size", "1", "--pipeline-parallel-size", "1")
    assert not told["VLLM"].env


def test_vllm_is_told_its_hidden_layers_by_stage_the_output_head_not_among_them():
    told = layered([17, 6, 18])["VLLM"]
    assert told.args == ("--tensor-parallel-size", "1", "--pipeline-parallel-size", "3")
    assert told.env == {"VLLM_PP_LAYER_PARTITION": "17,6,17"}


def test_what_an_engine_cannot_be_told_is_left_out():
    assert "LLAMACPP" not in layered([2] * 16)
    assert "LLAMACPP" in layered([2] * 15)
    assert "VLLM" not in layered([40, 1])
