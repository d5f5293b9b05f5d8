#!/usr/bin/env bash
# What is worth running under emulation: all that is bit for bit the same on every processor, the ways of files, and images
# beside those of this machine. ONNX Runtime is some hundred times slower there, so no more of it.
# Usage: cross/check_aarch64.sh [all]
# `all` adds what takes as long again: every schedule and way of guidance, more images, the command line.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
target=target/cross/aarch64-unknown-linux-gnu/debug
# Cortex-A53: Raspberry Pi Zero 2, and no dot product; A72: Raspberry Pi 4; A76: Raspberry Pi 5, and near to Jetson Orin.
processors=(cortex-a53 cortex-a72 cortex-a76)
prompts=("a rocket, 3d style")
# Files in tests/ that hardly use ONNX Runtime; each takes seconds. The noise is compared on every processor.
tests=(tokens bundle checkpoint)
# Unit tests but those that run whole models, dozens of times.
units=(--skip stage:: --skip plan:: --skip pipeline:: --skip pack:: --skip upscaler::)
last=(pictures)
case ${1:-} in
    "") ;;
    all)
        prompts+=("a red apple on a blue background")
        tests+=(sampling schedule guidance)
        last+=(command_line)
        units=(--skip upscaler::)
        ;;
    *)
        echo "cross/check_aarch64.sh: expected all or nothing, got $1" >&2
        exit 2
        ;;
esac

# Sums in another order may move a value over the edge between two levels.
largest_levels=1
mean_levels=0.01

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Others may be at work on this machine: the CPU's own time says more.
TIMEFORMAT="== took %0R s, %0U s of a processor"
timed() {
    echo "== $*"
    time "$@"
}

noise() {
    local processor
    for processor in "${processors[@]}"; do
        CALOTYPE_CPU=$processor cross/aarch64.sh test --locked --test noise
    done
}

command_line() {
    # The tests of `images` draw many, and take as long as all others together.
    cross/aarch64.sh test --locked --test cli -- --skip images::
}

generate() {
    "$@" --steps 2 --seed 1 >/dev/null 2>"$work/said" || {
        cat "$work/said" >&2
        return 1
    }
}

pictures() {
    local prompt processor
    for prompt in "${prompts[@]}"; do
        generate target/debug/calotype generate "$prompt" -o "$work/here.png"
        for processor in "${processors[@]}"; do
            CALOTYPE_CPU=$processor CALOTYPE_CROSS=$home generate cross/run_aarch64.sh "$work/calotype" \
                generate "$prompt" -o "$work/$processor.png"
            python3 cross/compare_images.py "$work/here.png" "$work/$processor.png" "$largest_levels" "$mean_levels"
        done
    done
}

home=$(cross/toolchain.sh)
# With the server, as the tests have built it.
timed cargo build --locked --features server
timed cross/aarch64.sh build --locked
# Where the command line is tested, a script is put in its place.
cp "$target/calotype" "$target/libonnxruntime.so" "$work"
timed cross/aarch64.sh test --locked --no-run --lib --test=noise "${tests[@]/#/--test=}"
timed cross/glibc_floor.sh "$(cat "$home/glibc_floor")" "$work/calotype" "$work/libonnxruntime.so"
timed noise
timed cross/aarch64.sh test --locked "${tests[@]/#/--test=}"
timed cross/aarch64.sh test --locked --lib -- "${units[@]}"
for part in "${last[@]}"; do
    timed "$part"
done
