#!/bin/sh
# Tries the real GPU side on a bare machine: gcc, Python 3.11 to 3.13 with its headers, no network. Everything else comes
# from the wheels in $WHEELS (dist/gpu, by `make gpu-wheels`). Works in a copy: this checkout stays as it is.
#   scripts/gpu-check.sh [REPORT-DIRECTORY]
# Writes report.txt, and where there is a GPU costs-idle.json, costs-load.json and a trace. Exits as the tests do, or 2
# where something is missing.
set -u
cd "$(dirname "$0")/.." || exit 2
source=$PWD
wheels=$(cd "${WHEELS:-dist/gpu}" 2>/dev/null && pwd)
seconds=${SECONDS_EACH:-20} # of each measurement
mkdir -p "${1:-build/gpu-report}" && report=$(cd "${1:-build/gpu-report}" && pwd) || exit 2
log=$report/report.txt

say() { echo "$*" | tee -a "$log"; }
missing() {
    say "missing: $*"
    exit 2
}
# Runs a program into the report, and leaves its exit status in $status.
tell() {
    say ""
    say "\$ $*"
    "$@" >"$work/out" 2>&1
    status=$?
    tee -a "$log" <"$work/out"
    [ "$status" = 0 ] || say "(exit status $status)"
}
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

date -u +"poolmgr on a GPU host, %Y-%m-%d %H:%M UTC" >"$log"
python=${PYTHON:-}
for each in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
    [ -n "$python" ] || { fits "$each" && python=$each; }
done
[ -n "$python" ] && fits "$python" || missing "Python 3.11 to 3.13 (PYTHON names one)"
command -v gcc >/dev/null || missing gcc
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    missing "Python.h of $python (python3-dev)"
[ -n "$wheels" ] && ls "$wheels"/pip-*.whl >/dev/null 2>&1 || missing "wheels (make gpu-wheels, where there is a network)"

work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
say "$("$python" --version), $(gcc --version | head -1), kernel $(uname -r), $(nproc) cores"
say "wheels: $(du -sm "$wheels" | cut -f1) MiB"

# What was built for another Python or another machine stays behind.
mkdir "$work/poolmgr"
tar -C "$source" -cf - --exclude='*.so' --exclude=__pycache__ --exclude='ext/poolmgr_ext/*.c' \
    poolmgr ext tests scripts docs pyproject.toml README.md | tar -C "$work/poolmgr" -xf - || missing "a whole checkout"
# Without ensurepip, which Debian packs apart: pip comes as a wheel too.
"$python" -m venv --without-pip "$work/venv" >>"$log" 2>&1 || missing "the module venv of $python"
bin=$work/venv/bin
pip="$bin/python -m pip --disable-pip-version-check --no-cache-dir"
offline="--no-index --find-links $wheels"
"$bin/python" "$(ls "$wheels"/pip-*.whl)/pip" --no-cache-dir install --quiet $offline pip >>"$log" 2>&1 || missing "a pip that installs"
tell $pip install --quiet $offline setuptools cython nvidia-ml-py pytest pytest-asyncio pytest-timeout
[ "$status" = 0 ] || missing "wheels that fit"
# What the daemon needs besides is not needed here, and not carried.
begin=$(date +%s)
tell $pip install --quiet $offline --no-deps --editable "$work/poolmgr"
[ "$status" = 0 ] || missing "an extension that builds"
say "extension built in $(($(date +%s) - begin)) s"
cd "$work/poolmgr" || exit 2

if command -v nvidia-smi >/dev/null; then tell nvidia-smi; else say "no nvidia-smi"; fi
say ""
"$bin/python" -m pytest tests/gpu -p no:cacheprovider >"$work/out" 2>&1
result=$?
tee -a "$log" <"$work/out"

library=libnvidia-ml.so.1
if "$bin/python" -c "from poolmgr_ext.nvml import Library; Library('$library').close()" 2>/dev/null; then
    tell "$bin/python" scripts/gpu_costs.py --seconds "$seconds" --output "$report/costs-idle.json"
    # Idle, memory that fills, load, free again: to be replayed by the simulator.
    "$bin/python" scripts/record_trace.py "$report/trace" --seconds "$((seconds * 3))" >>"$log" 2>&1 &
    recorder=$!
    { sleep "$((seconds / 2))"
      for step in 1 2 3 4 5 6; do echo "alloc 2048"; sleep 1; done
      echo "load $seconds"; sleep "$seconds"; echo free; sleep 2; } | tell "$bin/python" -I -S tests/gpu/cuda.py
    wait "$recorder"
    { echo "alloc 2048"; echo "load $((seconds * 2 + 30))"; sleep "$((seconds * 2 + 30))"; } |
        "$bin/python" -I -S tests/gpu/cuda.py >/dev/null 2>&1 &
    tell "$bin/python" scripts/gpu_costs.py --seconds "$seconds" --output "$report/costs-load.json"
    wait
else
    say "no NVIDIA driver on this host: costs are the simulated driver's, and say nothing of a real one"
    tell "$bin/python" -c "import os, sys
from poolmgr.adapters.simulator.host import SimulatedHost, environment
from poolmgr.adapters.simulator.scenario import load
os.environ |= environment(SimulatedHost(load('H200'), '$work/state').path)
os.execv(sys.executable, [sys.executable, 'scripts/gpu_costs.py', '--seconds', '3', '--output', '$report/costs-simulated.json'])"
fi
say ""
say "tests: exit status $result; report: $log"
exit "$result"
