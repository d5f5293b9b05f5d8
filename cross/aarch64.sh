#!/usr/bin/env bash
# Builds and runs calotype for 64-bit ARM on another machine: any cargo command, with the target and its tools set.
# Usage: cross/aarch64.sh build --release | test --test noise | run -- doctor | setup | check [all]
# `CALOTYPE_CPU` names the CPU that is emulated: cortex-a53, cortex-a72 or cortex-a76.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

case ${1:-} in
    "" | -h | --help)
        sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
        exit
        ;;
esac
home=$("$here/toolchain.sh")
case $1 in
    setup) echo "$home" ;;
    check) exec "$here/check_aarch64.sh" "${@:2}" ;;
    *)
        export RUSTC=$home/bin/rustc RUSTDOC=$home/bin/rustdoc CALOTYPE_CROSS=$home
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$home/bin/cc-aarch64
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$here/run_aarch64.sh
        # Apart from what the machine's own compiler builds.
        export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/../target/cross}
        command=$1
        shift
        exec cargo "$command" --target aarch64-unknown-linux-gnu "$@"
        ;;
esac
