#!/bin/sh
# Makes the virtual environment $1 with poolmgr, its engine and its tests. Debian packages that are missing are
# installed where we are root; otherwise they are listed and the exit status is 2.
set -eu
venv=$1
python=${PYTHON:-}

need=""
command -v gcc >/dev/null 2>&1 || need="$need gcc libc6-dev"
command -v patch >/dev/null 2>&1 || need="$need patch"
[ -n "$python" ] || need="$need python3"
if [ -n "$python" ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need="$need python3-venv"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
        || need="$need python3-dev"
fi
# llama.cpp's wheel is linked against OpenMP's runtime.
ldconfig -p 2>/dev/null | grep -q 'libgomp\.so\.1' || need="$need libgomp1"

if [ -n "$need" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing Debian packages:$need"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need >/dev/null
        [ -n "$python" ] || python=/usr/bin/python3
    else
        echo "missing Debian packages:$need" >&2
        echo "install them with: sudo apt-get install$need" >&2
        exit 2
    fi
fi

echo "setting up $venv with $("$python" --version) (a few minutes the first time)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
log=$venv/setup.log
if ! { "$venv/bin/python" -m pip install --disable-pip-version-check --upgrade pip setuptools &&
    "$venv/bin/python" -m pip install --disable-pip-version-check -e '.[llamacpp,generate,test,bench]'; } >"$log" 2>&1
then
    cat "$log" >&2
    echo "the installation failed; what pip said stands above and in $log" >&2
    exit 1
fi
