"""Estimates against what the real llama.cpp reserves, on shapes that nobody chose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import estimates
from poolmgr.adapters.modelfiles import ModelFileReader
from poolmgr.model.shape import ModelShape
from poolmgr.testing.shapes import FAMILIES, Shape, write_shape
from tests.core.llamacpp_measured import MIB, ROWS, Measured, shape_of

pytestmark = [pytest.mark.behaviour("MEM-1"), pytest.mark.e2e]

BASE = Shape(layers=7, width=320, heads=6, kv_heads=2, head=64, ffn=704, vocab=2000, type="Q8_0")


def of(family: str) -> Shape:
    experts = 8 if family in ("qwen3moe", "gpt-oss") else 0
    return replace(
        BASE, family=family, width=384 if family == "qwen2" else 320, tied=family.startswith("gemma"), experts=experts,
        experts_used=2 if experts else 0, window=128 if family in ("gemma2", "gemma3", "gpt-oss") else 0,
        kv_rank=128 if family == "deepseek2" else 0, q_rank=128 if family == "deepseek2" else 0,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_each_buffer_is_as_the_engine_prints_it(tmp_path: Path, family: str) -> None:
    (path,) = write_shape(tmp_path / "m.gguf", of(family))
    measured, predicted = (call(path, 1024, 2, "f16") for call in (estimates.measure, estimates.predict))
    for part, size in measured.items():
        # It prints two decimals, and a line per buffer.
        assert predicted[part] == pytest.approx(size, rel=0.01, abs=0.02 * estimates.MIB), part


@pytest.mark.parametrize("row", ROWS[::8], ids=lambda row: f"{row.family}-{row.context}x{row.slots}-{row.cache}")
def test_the_table_of_measurements_is_what_the_engine_prints_today(tmp_path: Path, row: Measured) -> None:
    shape = Shape(
        row.family, row.layers, row.width, row.heads, row.kv_heads, row.head, row.ffn, row.vocab, "Q8_0",
        bool(row.tied), row.experts, row.experts_used, 8192, row.window, row.kv_rank, row.q_rank, dense=row.dense,
    )  # fmt: skip
    (path,) = write_shape(tmp_path / "m.gguf", shape)
    measured = estimates.measure(path, row.context, row.slots, row.cache)
    assert round(measured["compute"] / MIB, 2) == row.compute
    assert round(measured["kv"] / MIB, 2) == row.kv
    read = ModelFileReader().read(str(path))
    assert lengths(read) == lengths(shape_of(row))


def lengths(shape: ModelShape) -> ModelShape:
    """Without weights, names and files."""
    layers = tuple(
        replace(one, attention_bytes=0, dense_bytes=0, expert_bytes=0, shared_bytes=0) for one in shape.layers
    )
    return replace(shape, layers=layers, name="", embedding_bytes=0, output_bytes=0, file_bytes=0)


def test_a_series_of_files_is_read_as_the_engine_reads_it(tmp_path: Path) -> None:
    path, *_ = write_shape(tmp_path / "m.gguf", BASE, tensors_per_file=25)
    measured, predicted = (call(path, 512, 1, "q8_0") for call in (estimates.measure, estimates.predict))
    assert predicted["model"] == pytest.approx(measured["model"], rel=0.01)


def test_a_wrong_model_of_the_cache_would_be_seen(tmp_path: Path) -> None:
    """As if all heads of the queries had keys of their own: the comparison turns red."""
    (path,) = write_shape(tmp_path / "m.gguf", BASE)
    (wrong,) = write_shape(tmp_path / "wrong.gguf", replace(BASE, kv_heads=BASE.heads))
    measured = estimates.measure(path, 4096, 1, "f16")
    row = estimates.Row(estimates.Case(BASE, 4096, 1, "f16"), measured, estimates.predict(wrong, 4096, 1, "f16"))
    assert row.error("kv") == pytest.approx(2.0, rel=0.01)
    assert row.error() > 0.15


def test_a_model_that_the_engine_refuses_is_no_measurement(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(RuntimeError, match="failed to load model"):
        estimates.measure(path, 512, 1, "f16")
