#!/usr/bin/env bash
# Checks that calotype compiles for systems for which nothing here can link or run: macOS on ARM, Windows on x86-64.
# So do the tests and benchmarks.
# Usage: cross/check.sh [TARGET...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."

if [ $# -eq 0 ]; then
    set -- aarch64-apple-darwin x86_64-pc-windows-msvc
fi
home=$(cross/toolchain.sh)
export RUSTC=$home/bin/rustc CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cross}
# The standard library comes with no binaries for them, so it is checked from its sources, which stable compilers refuse.
export RUSTC_BOOTSTRAP=1
for target; do
    RUSTFLAGS="-D warnings" cargo check --locked --all-targets -Zbuild-std=std,panic_unwind,test --target "$target"
done
