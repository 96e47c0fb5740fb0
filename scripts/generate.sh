#!/bin/sh
# Makes poolmgr/v1 from proto/, with the generators that pyproject.toml pins. $1: where to write (default: here).
set -eu
cd "$(dirname "$0")/.."
out=${1:-.}
python=${PYTHON:-.venv/bin/python}
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -I proto \
    --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
    proto/poolmgr/v1/*.proto
