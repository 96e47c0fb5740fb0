"""Writes a Llama model of random weights as a GGUF file: a real model that a real engine loads in milliseconds.

``python -m poolmgr.testing.gguf PATH [--layers N] [--width N] [--vocab N] [--seed N]``; needs the llamacpp extra.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

HEADS = 4
BYTES = 256
SPECIAL = (("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL))
CONTEXT_LENGTH = 2048


def write_tiny_llama(path: str | Path, layers: int = 2, width: int = 64, vocab: int = 300, seed: int = 0) -> None:
    """Writes the model; the same arguments give the same bytes. 0.5 MB by default.

    `width` is the embedding length, a multiple of 8 (4 heads of even length). `vocab` counts 3 special tokens and one
    for each byte, so that any text can be tokenized. ValueError when either is too small.
    """
    if width < 2 * HEADS or width % (2 * HEADS) or vocab < len(SPECIAL) + BYTES or layers < 1:
        raise ValueError(f"no such model: {layers=}, {width=}, {vocab=}")
    writer = GGUFWriter(str(path), "llama")
    _describe(writer, layers, width, vocab)
    add_tokens(writer, vocab)
    _add_weights(writer, layers, width, vocab, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: GGUFWriter, layers: int, width: int, vocab: int) -> None:
    writer.add_name("tiny-llama")
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // HEADS)
    writer.add_vocab_size(vocab)
    writer.add_file_type(0)


def add_tokens(writer: GGUFWriter, vocab: int) -> None:
    """A SentencePiece vocabulary of `vocab` entries, at least 259: 3 special tokens, one for each byte, words."""
    words = vocab - len(SPECIAL) - BYTES
    texts = [text for text, _ in SPECIAL] + [f"<0x{byte:02X}>" for byte in range(BYTES)]
    kinds = [kind for _, kind in SPECIAL] + [TokenType.BYTE] * BYTES
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts + [f"▁w{number}" for number in range(words)])
    writer.add_token_scores([0.0] * len(texts) + [-float(number) for number in range(words)])
    writer.add_token_types(kinds + [TokenType.NORMAL] * words)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _add_weights(writer: GGUFWriter, layers: int, width: int, vocab: int, rng: np.random.Generator) -> None:
    """Tensors as (rows, columns) of float32, which GGUF stores as ne = (columns, rows)."""

    def random(name: str, rows: int, columns: int) -> None:
        weights = rng.standard_normal((rows, columns), dtype=np.float32)
        writer.add_tensor(f"{name}.weight", weights * np.float32(0.05))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    random("token_embd", vocab, width)
    norm("output_norm")
    random("output", vocab, width)
    for layer in (f"blk.{index}" for index in range(layers)):
        norm(f"{layer}.attn_norm")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            random(f"{layer}.{part}", width, width)
        norm(f"{layer}.ffn_norm")
        random(f"{layer}.ffn_gate", 2 * width, width)
        random(f"{layer}.ffn_up", 2 * width, width)
        random(f"{layer}.ffn_down", width, 2 * width)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a Llama model of random weights.")
    parser.add_argument("path", type=Path)
    for name, default in (("layers", 2), ("width", 64), ("vocab", 300), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    write_tiny_llama(options.path, options.layers, options.width, options.vocab, options.seed)
    print(f"{options.path}: {options.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
