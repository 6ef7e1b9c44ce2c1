#!/usr/bin/env bash
# Write the lock files, requirements/run.txt and requirements/dev.txt, anew from pyproject.toml and requirements/build.in.
#
# Versions that still fit are kept; `scripts/lock.sh --upgrade` takes the newest. Needs uv. The files hold every
# platform's hashes and no index's address, so that they install from whichever index this machine is set up for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
compile=(uv pip compile --quiet --universal --python-version 3.11 --generate-hashes
  --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@" pyproject.toml requirements/build.in)
"${compile[@]}" --extra dagster --extra lab --output-file requirements/run.txt >/dev/null
"${compile[@]}" --all-extras --constraint requirements/run.txt --output-file requirements/dev.txt >/dev/null
