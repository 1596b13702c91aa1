#!/usr/bin/env bash
# Makes .venv (or VENV=...) with this checkout's packages and all they need; `make setup` runs this. PYTHON=... names the
# Python for a new one, CONSTRAINTS=... another file of versions than constraints.txt. Missing Debian packages are
# installed if that needs no password. Everything else works without them: ffcv needs all of them, torch.compile needs the
# compiler and Python's headers.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
constraints=${CONSTRAINTS:-constraints.txt}
python=$venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "setup: $*"; }

pip_install() { "$python" -m pip install --quiet --quiet --no-input --constraint "$constraints" "$@"; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Install Debian packages. False if that is not allowed or fails.
apt_install() {
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo -n)
    command -v apt-get >/dev/null && "${root[@]}" true 2>/dev/null || return
    say "installing system packages: $*"
    {
        "${root[@]}" apt-get update -qq || true # one broken source may not matter: the next line shows
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -o DPkg::Lock::Timeout=300 "$@"
    } >"$work/apt.log" 2>&1 || { cat "$work/apt.log" >&2; return 1; }
}

create_venv() {
    local candidates=(python3 python3.13 python3.12 python3.11) candidate name base=""
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if new_enough "$candidate"; then base=$candidate && break; fi
    done
    if [ -z "$base" ]; then
        say "none of ${candidates[*]} is Python 3.11 or newer; install one or name it: make setup PYTHON=FILE" >&2
        exit 2
    fi
    if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
        name=$("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if ! apt_install "$name"; then
            say "$base cannot make virtual environments; type: sudo apt-get install $name" >&2
            exit 2
        fi
    fi
    "$base" -m venv --clear "$venv"
}

# The Debian packages that are missing to compile ffcv.
missing_for_ffcv() {
    command -v g++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    "$python" -c 'import os, sys, sysconfig
if not os.path.exists(sysconfig.get_path("include") + "/Python.h"): print("python%d.%d-dev" % sys.version_info[:2])'
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    pkg-config --exists opencv4 2>/dev/null || [ -e /usr/include/opencv4/opencv2/imgproc.hpp ] ||
        echo libopencv-imgproc-dev
}

# ffcv asks pkg-config for all of OpenCV (250 Debian packages) but uses only core and imgproc: describe only those.
describe_opencv() {
    mkdir "$work/opencv2"
    printf '#include <opencv2/%s.hpp>\n' core imgproc >"$work/opencv2/opencv.hpp"
    cat >"$work/opencv4.pc" <<END
Name: OpenCV
Description: core and imgproc only
Version: 4
Cflags: -I$work -I/usr/include/opencv4
Libs: -lopencv_core -lopencv_imgproc
END
    export PKG_CONFIG_PATH="$work${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
}

install_ffcv() {
    local missing version without="the ffcv format is"
    mapfile -t missing < <(missing_for_ffcv)
    if [ ${#missing[@]} -gt 0 ] && ! apt_install "${missing[@]}"; then
        [[ "${missing[*]}" =~ g\+\+|python ]] && without="the ffcv format and train.compile are"
        say "$without unavailable; type:" \
            "sudo apt-get install --no-install-recommends ${missing[*]} && make -B setup" >&2
        return
    fi
    pkg-config --exists opencv4 || describe_opencv
    say "compiling ffcv"
    # No cache: a wheel compiled against another OpenCV would not load.
    if ! pip_install --no-cache-dir --editable '.[ffcv]'; then
        say "the ffcv format is unavailable: ffcv could not be installed (see above); to try again: make -B setup" >&2
        return
    fi
    if ! "$python" -c 'import cv2' 2>/dev/null; then
        # ffcv requires the wheel with GUI windows, which needs desktop libraries; the headless one has everything else.
        version=$("$python" -c 'from importlib.metadata import version; print(version("opencv-python"))')
        "$python" -m pip uninstall --quiet --quiet --yes opencv-python
        pip_install --force-reinstall --no-deps "opencv-python-headless==$version"
    fi
    if ! "$python" -c 'import ffcv' 2>"$work/import.log"; then
        say "the ffcv format is unavailable: $(tail -n 1 "$work/import.log")" >&2
    fi
}

if ! new_enough "$python" || ! "$python" -m pip --version >/dev/null 2>&1; then
    create_venv
fi
say "installing Python packages (the first time several GB)"
pip_install --editable '.[dali,dev]'
install_ffcv
say "ready: $venv with $("$python" --version)"
