#!/bin/sh
# Collects into $1 (dist/gpu) what gpu-check.sh installs on a machine without a network: pure Python, for every version.
set -eu
cd "$(dirname "$0")/.."
to=${1:-dist/gpu}
python=${PYTHON:-python3}
limit_mib=60 # what may be carried along with the checkout

mkdir -p "$to"
rm -f "$to"/*.whl
# Pinned as in pyproject.toml where that pins; setuptools and cython build the extension, the rest runs tests/gpu.
# pytest-asyncio wants typing-extensions up to Python 3.12.
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$to" \
    --implementation py --abi none --platform any --python-version 3.11 \
    pip "setuptools>=80" cython==3.2.8 nvidia-ml-py==13.615.71 \
    "pytest>=9" "pytest-asyncio>=1.3" "pytest-timeout>=2.4" pluggy iniconfig packaging pygments typing-extensions
size=$(du -sm "$to" | cut -f1)
if [ "$size" -gt "$limit_mib" ]; then
    echo "$to takes $size MiB, more than $limit_mib" >&2
    exit 1
fi
echo "$to: $(ls "$to" | wc -l) wheels, $size MiB"
