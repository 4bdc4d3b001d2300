#!/bin/sh
# Makes, completes or repairs the environment: sh tools/setup.sh .venv
# An installation that was cut short leaves its mark, and is begun again from nothing.
set -eu
venv=$1
unfinished=$venv/unfinished
fits='import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

fits() { "$1" -c "$fits" >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11, 3.12 or 3.13 with venv is needed, and none was found (looked for:" \
        "${PYTHON:-python3, python3.13, python3.12, python3.11, python})." >&2
    echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name yours:" \
        "make PYTHON=/path/to/python3.12 ..." >&2
    return 1
}

has_pip() { "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

if [ -e "$unfinished" ] || ! fits "$venv/bin/python" || ! has_pip; then
    python=$(find_python)
    echo "making $venv with $($python --version)"
    "$python" -m venv --clear "$venv"
fi
touch "$unfinished"
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$venv/bin/python" -m pip install --requirement requirements.txt
rm "$unfinished"
# no build isolation: the build tool is pinned in requirements.txt like everything else
"$venv/bin/python" -m pip install --no-deps --no-build-isolation --editable .
