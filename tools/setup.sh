#!/usr/bin/env bash
# Make the virtual environment of this checkout, if what is there is not exactly it.
# Environment: PYTHON (an interpreter, default python3), VENV (a directory, default .venv).
#
# A stamp, written last, says what was installed: the requirements, the Python
# and the place. A checkout that was moved, copied or interrupted in the middle
# has no matching stamp and is set up anew. Two at once take turns.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}

# A virtual environment knows the Python that made it; PYTHON matters when it is made.
if ! version=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)' 2>&1); then
    echo "$python does not run: $version. Install Python 3.11 or newer, or name one: make PYTHON=…" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is Python ${version%% *}; 3.11 or newer is needed. Name one: make PYTHON=python3.12 …" >&2
    exit 1
fi

wanted=$(
    printf '%s\n' "$PWD" "$venv" "$version"
    cat requirements.txt requirements-dev.txt constraints.txt
)
stamp=$venv/.installed

# The lock is the script itself: it is there before anything else is, and
# the kernel lets go of it however this process ends.
exec 9<"tools/setup.sh"
"$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'

if [[ -f $stamp && $(<"$stamp") == "$wanted" && -x $venv/bin/python ]]; then
    exit 0
fi

echo "Setting up $venv ($("$python" --version)); this takes a minute, once."
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
printf '%s\n' "$wanted" >"$stamp.new"
mv "$stamp.new" "$stamp"
