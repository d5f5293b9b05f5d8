#!/usr/bin/env bash
# Drives the kiosk page of one build in Chromium: `tests/kiosk/run.sh target/release/calotype [arguments of kiosk.mjs]`.
# Where Node or Chromium is missing, installs Debian's.
set -euo pipefail

program=$(realpath "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")"

missing=()
command -v node > /dev/null || missing+=(nodejs)
command -v npm > /dev/null || missing+=(npm)
[ -n "${CHROMIUM:-}" ] || command -v chromium > /dev/null || missing+=(chromium)
if [ "${#missing[@]}" -gt 0 ]; then
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update --quiet
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends "${missing[@]}"
fi
npm ci --no-audit --no-fund --ignore-scripts
node kiosk.mjs --calotype "$program" "$@"
