#!/usr/bin/env bash
# Runs an ARM program under emulation; cargo calls it for every program and test.
# Usage: CALOTYPE_CROSS=FOLDER cross/run_aarch64.sh PROGRAM ARGUMENT...
set -euo pipefail
# Never `max`: qemu's SME gives wrong results of integer kernels there.
cpu=${CALOTYPE_CPU:-cortex-a76}
case $cpu in
    cortex-a53 | cortex-a72 | cortex-a76) ;;
    *)
        echo "cross/run_aarch64.sh: CALOTYPE_CPU: expected cortex-a53, cortex-a72 or cortex-a76, got $cpu" >&2
        exit 2
        ;;
esac
emulator=${CALOTYPE_CROSS:?expected the folder that cross/toolchain.sh prints}/bin/qemu-aarch64

# Tests of the command line start the program beside them, and the kernel would refuse it: a script goes in its place.
# Cargo's next build puts the program back.
program=$(dirname "$1")/../calotype
if [ "$(basename "$(dirname "$1")")" = deps ] && [ "$(head -c 4 "$program" | tail -c 3)" = ELF ]; then
    # What an earlier build put there may be the same file, which is not moved to itself.
    rm -f "$program.aarch64"
    mv "$program" "$program.aarch64"
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$(realpath "$0")" "$(realpath "$program.aarch64")" > "$program"
    chmod +x "$program"
fi
exec "$emulator" -cpu "$cpu" "$@"
