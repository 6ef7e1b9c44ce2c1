#!/usr/bin/env bash
# Make .venv in this checkout from the hash-pinned lock file, and install the checkout into it.
#
#   scripts/setup.sh        what drills, the UI and `dr` need
#   scripts/setup.sh dev    that, and what the tests and linters need
#
# Does nothing where .venv is what the lock file says. PYTHON names another interpreter than python3.
# Exit status: 0 ready, 1 an installation failed, 2 this machine lacks something (it says what).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DEBIAN_FRONTEND=noninteractive
level=${1:-run}
python=${PYTHON:-python3}

say() { printf '%s\n' "$*" >&2; }

# The checkout's path is part of it: scripts in a .venv name their interpreter by its absolute path.
fingerprint() { { pwd; cat pyproject.toml "requirements/$1.txt"; } | sha256sum; }

is_ready() {
  [ -x .venv/bin/dr ] && [ "$(cat ".venv/.ready-$level" 2>/dev/null)" = "$(fingerprint "$level")" ] &&
    .venv/bin/python -c '' 2>/dev/null
}

check_python() {
  if ! command -v "$python" >/dev/null; then
    say "$python is not installed; Python 3.11 or newer is needed, on Debian: apt-get install python3 python3-venv"
    exit 2
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "$python is $("$python" --version), and 3.11 or newer is needed; name another one: PYTHON=python3.12 make setup"
    exit 2
  fi
}

# Debian splits venv and ensurepip off from python3.
check_venv() {
  if "$python" -c 'import venv, ensurepip' 2>/dev/null; then return; fi
  local package
  package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  if ! command -v apt-get >/dev/null; then
    say "$python has no venv: install your system's package for it, then try again"
    exit 2
  fi
  if [ "$(id -u)" != 0 ]; then
    say "$python has no venv; this installs it, then try again:"
    say "  sudo apt-get update && sudo apt-get install -y $package"
    exit 2
  fi
  say "Installing $package ..."
  local output
  if ! output=$({ apt-get update && apt-get install -y --no-install-recommends "$package"; } 2>&1); then
    say "$output"
    exit 1
  fi
}

create_venv() {
  if [ "$(cat .venv/.checkout 2>/dev/null)" = "$PWD" ] && .venv/bin/python -c 'import pip' 2>/dev/null; then return; fi
  check_python
  check_venv
  "$python" -m venv --clear .venv
}

install_packages() {
  # Gone while packages are written: pip takes a half-written one for installed, so what was interrupted is made anew.
  rm -f .venv/.checkout
  local pip=(.venv/bin/python -m pip --disable-pip-version-check -qq install --no-deps)
  "${pip[@]}" --require-hashes --only-binary :all: --requirement "requirements/$level.txt"
  "${pip[@]}" --no-build-isolation --editable .
  pwd >.venv/.checkout
}

case $level in run | dev) ;; *) say "scripts/setup.sh [run|dev]"; exit 2 ;; esac
if is_ready; then exit 0; fi
say "Setting up .venv ..."
create_venv
install_packages
fingerprint "$level" >".venv/.ready-$level"
# What the developers' lock file installs holds the other one's.
[ "$level" = run ] || fingerprint run >.venv/.ready-run
say "Ready after $SECONDS s."
