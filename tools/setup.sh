#!/usr/bin/env bash
# Make the virtual environment of this checkout, if what is there is not exactly it.
# Environment: PYTHON (an interpreter; default: the one of the environment that is
# there, else the first one on the PATH that is new enough), VENV (default .venv).
#
# A stamp, written last, says what was installed: the requirements, the Python
# and the place. A checkout that was moved, copied or interrupted in the middle
# has no matching stamp and is set up again. Two at once take turns.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
stamp=$venv/.installed

# Prints what tells this Python from others; fails if it does not run or is too old.
identity() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11) or print(sys.version, sys.base_prefix))' \
        2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if identity "$candidate" >/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    echo "${PYTHON:-python3} is not a Python 3.11 or newer. Install one, or name it: make PYTHON=…" >&2
    return 1
}

contents() {
    printf '%s\n' "$PWD" "$venv" "$1"
    cat requirements.txt requirements-dev.txt constraints.txt
}

python=$(find_python)

# The lock is the script itself: it is there before anything else is, and the
# kernel lets go of it however this process ends.
exec 9<tools/setup.sh
"$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'

if there=$(identity "$venv/bin/python"); then
    [[ -z ${PYTHON:-} ]] || there=$(identity "$python")
    if [[ -f $stamp && $(<"$stamp") == "$(contents "$there")" ]]; then
        exit 0
    fi
fi

echo "Setting up $venv with $("$python" --version); this takes a minute, once." >&2
rm -rf "$venv"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! {
    "$python" -m venv "$venv" &&
        PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 "$venv/bin/python" -m pip install \
            --quiet --root-user-action=ignore -r requirements-dev.txt
} >"$log" 2>&1 9<&-; then
    cat "$log" >&2
    echo "The set-up did not finish; the next make starts it again." >&2
    exit 1
fi
contents "$(identity "$venv/bin/python")" >"$stamp.new"
mv "$stamp.new" "$stamp"
