#!/usr/bin/env bash
# Install what the tests and benchmarks run against besides .venv: Debian's PostgreSQL 15, Chromium, zstd and faketime.
#
# As root it installs what is missing; no cluster is created and no service is started. As another user it says what is
# missing, and that the tests that need it are skipped.
# Exit status: 0 done or said, 1 an installation failed, 2 there is no apt-get.
set -euo pipefail

packages=()
[ -x /usr/lib/postgresql/15/bin/postgres ] || packages+=(postgresql-15)
command -v chromium >/dev/null || packages+=(chromium)
command -v zstd >/dev/null || packages+=(zstd)
command -v faketime >/dev/null || packages+=(faketime)
if [ ${#packages[@]} = 0 ]; then exit 0; fi

if [ "$(id -u)" != 0 ]; then
  echo "Not installed, so the tests that need them are skipped: ${packages[*]}"
  echo "  sudo scripts/test-software.sh   installs them, and starts no service"
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "There is no apt-get; install by your system's means: ${packages[*]}" >&2
  exit 2
fi

ours=()
trap 'rm -f "${ours[@]}"' EXIT
# write_unless_there FILE MODE CONTENT: what this machine's owner has decided there stays.
write_unless_there() {
  if [ -e "$1" ]; then return; fi
  mkdir -p "$(dirname "$1")"
  ours+=("$1")
  printf '%s\n' "$3" >"$1"
  chmod "$2" "$1"
}
write_unless_there /usr/sbin/policy-rc.d 755 $'#!/bin/sh\nexit 101'
write_unless_there /etc/postgresql-common/createcluster.d/only-binaries.conf 644 'create_main_cluster = false'

echo "Installing ${packages[*]} ..."
export DEBIAN_FRONTEND=noninteractive
if ! output=$({ apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"; } 2>&1); then
  printf '%s\n' "$output" >&2
  exit 1
fi
