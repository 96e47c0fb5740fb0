"""A hostile model file is a typed error, with the path: no crash, no loop, no memory."""

from __future__ import annotations

import json
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from modelfile_files import (
    ARRAY,
    STRING,
    U32,
    U64,
    array,
    block,
    header,
    llama,
    number,
    pair,
    tensor,
    text,
    write_directory,
)

from poolmgr.adapters.modelfiles import ModelFileReader, bounds
from poolmgr.errors import ClientError, Reason
from poolmgr.testing.shapes import Shape, write_shape

pytestmark = pytest.mark.behaviour("MEM-1")

LIMIT_BYTES = 16 << 20
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WIDE = 2**40


def peak_of(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def judge(path: Path) -> ClientError | None:
    """Reads it: the refusal, or None where it is a model. Anything else than these two fails the test."""
    refused: list[ClientError] = []

    def read() -> None:
        try:
            ModelFileReader().read(str(path))
        except ClientError as error:
            refused.append(error)

    assert peak_of(read) < LIMIT_BYTES
    if not refused:
        return None
    assert refused[0].reason in (Reason.MODEL_INVALID, Reason.MODEL_NOT_FOUND)
    assert str(refused[0].numbers["path"]).startswith(str(path.parent))
    return refused[0]


def refusal(path: Path) -> str:
    error = judge(path)
    assert error is not None, "it was taken for a model"
    assert error.reason is Reason.MODEL_INVALID
    return error.message


def test_memory_that_a_reader_takes_is_seen() -> None:
    """Of the check itself: what it is there to find, it finds."""
    assert peak_of(lambda: bytes(LIMIT_BYTES)) >= LIMIT_BYTES


GOOD = header(llama(), [tensor("token_embd.weight", (64, 10))]) + bytes(4096)

HOSTILE = {
    "no magic": (b"GGML" + GOOD[4:], "does not begin with GGUF"),
    "empty": (b"", "ends at byte 0"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + GOOD[8:], "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "2^63 tensors": (header(llama(), [], (2**63, 5)), "number of tensors"),
    "2^63 keys": (header(llama(), [], (0, 2**63)), "number of metadata keys"),
    "more tensors than bytes": (header(llama(), [], (60_000, 5)), "are left"),
    "a key of 2^40 bytes": (header([struct.pack("<Q", WIDE)], []) + bytes(64), "length of a key"),
    "a text of 2^40 bytes": (header([pair("a", STRING, struct.pack("<Q", WIDE))], []), "length of 'a'"),
    "an array of 2^60 texts": (header([array("a", STRING, 2**60)], []), "texts in arrays"),
    "a text of 2^63 bytes in an array": (
        header([array("a", STRING, 1, struct.pack("<Q", 2**63))], []) + bytes(64), "a text of 92233720368547758",
    ),
    "an array of 2^60 numbers": (header([array("a", U64, 2**60)], []), "length of 'a'"),
    "an array of arrays": (header([array("a", ARRAY, 1, bytes(64))], []), "array of type 9"),
    "a value of type 77": (header([pair("a", 77, bytes(8))], []), "unknown type 77"),
    "no architecture": (header([number("llama.block_count", 2)], []) + bytes(64), "general.architecture"),
    "no layers": (header([pair("general.architecture", STRING, text("llama"))], []), "has 0 layers"),
    "4 billion layers": (header(llama(number("llama.block_count", 2**32 - 1)), []), "block_count"),
    "3,000 layers": (header(llama(number("llama.block_count", 3000)), []), "3000 layers"),
    "layers as a fraction": (header(llama(pair("llama.block_count", 6, struct.pack("<f", 2.5))), []), "whole number"),
    "too few heads listed": (
        header(llama(array("llama.attention.head_count_kv", U32, 1, bytes(4))), [tensor("x", (1,))]) + bytes(64),
        "1 numbers for 2 layers",
    ),
    "a tensor of 2^32 dimensions": (
        header(llama(), [text("x") + struct.pack("<I", 2**32 - 1)]) + bytes(64), "number of dimensions",
    ),
    "a tensor of 2^252 elements": (header(llama(), [tensor("x", (2**63,) * 4)]), "elements of 'x'"),
    "an empty tensor": (header(llama(), [tensor("x", (0, 4))]), "no whole blocks"),
    "half a block": (header(llama(), [tensor("x", (16, 4), kind=8)]), "no whole blocks of 32"),
    "a tensor of type 77": (header(llama(), [tensor("x", (1,), kind=77)]), "unknown type 77"),
    "a tensor past the end": (header(llama(), [tensor("x", (64, 64))]) + bytes(64), "cut short"),
    "a tensor at 2^63": (header(llama(), [tensor("x", (1,), offset=2**63)]) + bytes(64), "cut short"),
    "one place for many tensors": (
        header(llama(), [tensor(f"x{n}", (512,)) for n in range(9)]) + bytes(4096), "without gaps",
    ),
    "no tensors": (header(llama(), []) + bytes(64), "has no tensors"),
    "layer 99 of 2": (header(llama(), [tensor("blk.99.attn_q.weight", (1,))]) + bytes(64), "of layer 99"),
    "alignment 7": (header(llama(number("general.alignment", 7)), []) + bytes(64), "general.alignment 7"),
    "part 3 of 4": (header(llama(number("split.count", 4), number("split.no", 2)), []), "name the first"),
    "a million parts": (header(llama(number("split.count", 10**6)), []), "split.count"),
    "4 parts and no such name": (header(llama(number("split.count", 4)), []) + bytes(64), "is the first of 4 files"),
    "more tensors than it says": (
        header(llama(number("split.tensors.count", 7)), [tensor("x", (1,))]) + bytes(64), "have 1 tensors, not 7",
    ),
    "an architecture of a megabyte": (
        header([pair("general.architecture", STRING, text("a" * (1 << 20)))], []), "general.architecture",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_for_what_is_wrong_with_it(tmp_path: Path, name: str) -> None:
    data, says = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    assert says in refusal(path)


def test_the_header_that_the_hostile_ones_were_made_from_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD)
    assert judge(path) is None


def test_a_list_that_a_huge_file_has_room_for_is_not_walked_for_ever(tmp_path: Path) -> None:
    """A hole of 64 GiB has room for eight billion empty texts."""
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(header([array("tokenizer.ggml.tokens", STRING, 2**33 - 64)], []))
        file.truncate(64 << 30)
    assert f"at most {bounds.MAX_STRINGS}" in refusal(path)


def test_a_large_vocabulary_costs_no_memory(tmp_path: Path) -> None:
    (path,) = write_shape(tmp_path / "m.gguf", Shape(vocab=260_000, width=32, heads=1, kv_heads=1, head=32, ffn=32))
    assert peak_of(lambda: ModelFileReader().read(str(path))) < 2 << 20
    assert path.stat().st_size > 8 << 20


def test_thousands_of_keys_with_numbers_are_refused_before_they_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header([number(f"k{n}", n) for n in range(4000)], []))
    assert "keys with numbers" in refusal(path)


def test_every_cut_of_a_model_is_refused(tmp_path: Path) -> None:
    (path,) = write_shape(
        tmp_path / "m.gguf", Shape(layers=1, vocab=300, width=32, heads=1, kv_heads=1, head=32, ffn=32)
    )
    whole = path.read_bytes()
    assert judge(path) is None
    for cut in (*range(0, 400, 3), *range(400, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:cut])
        refusal(path)


@pytest.fixture(scope="module")
def model() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        shape = Shape(family="gpt-oss", layers=2, vocab=300, width=32, heads=1, kv_heads=1, head=32, ffn=32,
                      experts=2, experts_used=1, window=64)  # fmt: skip
        (path,) = write_shape(Path(directory, "m.gguf"), shape)
        yield path.read_bytes()


@FUZZ
@given(data=st.data())
def test_a_model_with_flipped_bits_is_a_model_or_refused(model: bytes, tmp_path: Path, data: st.DataObject) -> None:
    spoiled = bytearray(model)
    # Most of the file are texts and weights: aim at the lengths before and after the vocabulary too.
    places = st.one_of(st.integers(0, 900), st.integers(0, len(model) - 1))
    for place, mask in data.draw(st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=8)):
        spoiled[place] ^= mask
    path = tmp_path / "m.gguf"
    path.write_bytes(spoiled)
    judge(path)


@FUZZ
@given(body=st.binary(max_size=4096), counts=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
@example(body=b"", counts=(0, 0))
def test_random_bytes_after_the_magic_are_refused(tmp_path: Path, body: bytes, counts: tuple[int, int]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + body)
    refusal(path)


@FUZZ
@given(numbers=st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6), rest=st.binary(max_size=512))
def test_random_numbers_of_a_sound_structure_are_a_model_or_refused(
    tmp_path: Path, numbers: list[int], rest: bytes
) -> None:
    keys = ("block_count", "embedding_length", "attention.head_count", "attention.key_length", "context_length")
    pairs = [pair(f"llama.{key}", U64, struct.pack("<Q", n)) for key, n in zip(keys, numbers, strict=False)]
    name = pair("general.architecture", STRING, text("llama"))
    path = tmp_path / "m.gguf"
    path.write_bytes(header([name, *pairs], [tensor("blk.0.attn_q.weight", (numbers[5], 3))]) + rest)
    judge(path)


CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
JSON_HEADERS = {
    "no JSON": (b"{" * 40, "no JSON object of tensors"),
    "a list": (b"[]", "no JSON object of tensors"),
    "no end": (b'{"__metadata__": {}', "no JSON object of tensors"),
    "too deep": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "RecursionError"),
    "too long": (b'{"a": [' + b"[]," * 200_000 + b"[]]}", "an entry of over"),
    "a name without an end": (b'{"' + b"a" * 600_000, "no JSON object of tensors"),
    "no UTF-8": (b'{"a\xff": {}}', "UnicodeDecodeError"),
    "a number of 10,000 digits": (b'{"a": ' + b"9" * 10_000 + b"}", "is no JSON"),
    "200,000 tensors": (
        b"{" + b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(200_000)) + b"}",
        "number of its tensors",
    ),
    "no tensor": (b'{"model.norm.weight": 7}', "is no object"),
    "no place": (b'{"model.norm.weight": {"dtype": "F16", "shape": [4]}}', "lacks its type, shape or place"),
    "a place past the end": (
        b'{"model.norm.weight": {"dtype": "F16", "shape": [4], "data_offsets": [0, 99999999999]}}', "is at 0 to 9999",
    ),
    "another length": (
        b'{"model.norm.weight": {"dtype": "F16", "shape": [3], "data_offsets": [0, 8]}}', "of 3 F16 has 8 bytes",
    ),
    "2^80 elements": (
        b'{"model.norm.weight": {"dtype": "F16", "shape": [1099511627776, 1099511627776], "data_offsets": [0, 8]}}',
        "elements of",
    ),
    "many tensors in one place": (
        json.dumps({f"t{n}": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for n in range(99)}).encode(),
        "its tensors have 792 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JSON_HEADERS)
def test_a_hostile_safetensors_header_is_refused_for_what_is_wrong_with_it(tmp_path: Path, name: str) -> None:
    data, says = JSON_HEADERS[name]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + bytes(8))
    assert says in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("length", [2**63, 10**9, 100])
def test_a_safetensors_header_that_is_longer_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    assert "cut short or none" in refusal(tmp_path / "model.safetensors")


def test_a_safetensors_header_that_fills_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", (1 << 30) - 8))
        file.truncate(1 << 30)
    assert f"at most {bounds.MAX_HEADER_BYTES}" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "model_type"),
        ({"model_type": "llama"}, "has 0 layers"),
        (CONFIG | {"num_hidden_layers": 10**9}, "layers"),
        (CONFIG | {"num_attention_heads": -4}, "num_attention_heads is -4"),
        (CONFIG | {"num_attention_heads": "four"}, "not a whole number"),
        (CONFIG | {"kv_lora_rank": 2**70}, "kv_lora_rank"),
    ],
)
def test_a_hostile_configuration_is_refused(tmp_path: Path, config: dict[str, object], says: str) -> None:
    directory = write_directory(tmp_path / "model", config, [block(0, 64, 64, 32, 128)])
    assert says in refusal(directory)


@pytest.mark.parametrize("body", ['{"a":', "[]", "1", '{"a": ' + "9" * 5000 + "}", "[" * 100_000, " " * 600_000])
def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path, body: str) -> None:
    directory = write_directory(tmp_path / "model", CONFIG, [block(0, 64, 64, 32, 128)])
    (directory / "config.json").write_text(body)
    assert str(directory / "config.json") in refusal(directory)


def test_a_configuration_full_of_small_lists_costs_little_memory(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "model", CONFIG, [block(0, 64, 64, 32, 128)])
    (directory / "config.json").write_text('{"a": [' + "{}," * 170_000 + "{}]}")
    assert "model_type" in refusal(directory)


def test_an_index_leads_to_no_file_outside_the_directory(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "model", CONFIG, [block(0, 64, 64, 32, 128), block(1, 64, 64, 32, 128)])
    index = directory / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../../etc/x.safetensors", "b": "/x.safetensors"}}')
    assert "names no safetensors file" in refusal(directory)


@FUZZ
@given(body=st.binary(max_size=2048), length=st.one_of(st.integers(0, 2100), st.integers(0, 2**64 - 1)))
def test_random_safetensors_files_are_refused(tmp_path: Path, body: bytes, length: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + body)
    error = judge(tmp_path / "model.safetensors")
    assert error is None or error.reason is Reason.MODEL_INVALID
