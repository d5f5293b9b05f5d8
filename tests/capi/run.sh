#!/usr/bin/env bash
# The C library, from C: `tests/capi/run.sh FOLDER_OF_THE_LIBRARY`. The library is target/debug/examples after
# `cargo build --features server,capi --example calotype_c`. Everything is compiled under the address and undefined-behaviour
# sanitizers, where the compiler has them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

library=$(realpath "$1")
work=$(mktemp -d -t capi-XXXXXX)
trap 'rm -rf "$work"' EXIT
flags=(-std=c11 -Wall -Wextra -Werror -pedantic -g -Iinclude)
address=(-fsanitize=address)
undefined=(-fsanitize=undefined -fno-sanitize-recover=all)
# What ONNX Runtime keeps until the process ends.
echo "leak:libonnxruntime" > "$work/leaks.txt"
export LSAN_OPTIONS="suppressions=$work/leaks.txt:print_suppressions=0"

echo 'int main(void) { return 0; }' > "$work/empty.c"
if ! "${CC:-cc}" "${address[@]}" "${undefined[@]}" "$work/empty.c" -o "$work/empty"; then
    echo "left out: the sanitizers, which this compiler does not have"
    address=() undefined=()
fi
compile() {
    "${CC:-cc}" "${flags[@]}" "$@" -L"$library" -lcalotype_c -Wl,-rpath,"$library" -pthread
}
compile tests/capi/behaviour.c "${address[@]}" "${undefined[@]}" -o "$work/behaviour"
compile examples/c/generate.c "${address[@]}" "${undefined[@]}" -o "$work/generate"
# The address sanitizer takes more memory than the budget of an appliance.
compile examples/firmware/appliance.c "${undefined[@]}" -o "$work/appliance"
# The header is C++ as well.
echo '#include "calotype.h"' | "${CC:-cc}" -x c++ -Wall -Wextra -Werror -Iinclude -fsyntax-only -

"$work/behaviour" "$work"
"$work/generate" 'a "red" apple' "$work/apple.png" 2> "$work/generate.txt"
[ -s "$work/apple.png" ]

# An appliance whose power is cut goes on to the same bytes, and writes into its own folder alone.
mkdir "$work/whole" "$work/cut" "$work/home"
appliance() {
    HOME=$work/home TMPDIR=/nowhere "$work/appliance" "$@"
}
: > "$work/kicks"
appliance "$work/whole" "$work/kicks" 2 2> "$work/whole.txt"
# Before each image, at its beginning and after each of 12 steps.
[ "$(wc -c < "$work/kicks")" -eq 28 ]
# A watchdog that takes so many kicks and then blocks: a pipe of 64 KiB with as much room.
pipe() {
    mkfifo "$1"
    exec 5<> "$1"
    head -c $((65536 - $2)) /dev/zero >&5
}
# Waits until a folder has a snapshot of an image, for a minute.
snapshot_of() {
    local end=$((SECONDS + 60))
    until [ "$(od -An -tu8 -N8 "$1/run" 2> /dev/null | tr -d ' ')" = "$2" ] && [ "$(stat -c %s "$1/run")" -gt 16 ]; do
        if [ "$SECONDS" -gt "$end" ] || ! kill -0 "$3"; then
            echo "no snapshot of image $2"
            kill -9 "$3"
            return 1
        fi
        sleep 0.05
    done
}
# Up to the fifth step of the second image.
pipe "$work/watchdog" 21
HOME=$work/home TMPDIR=/nowhere "$work/appliance" "$work/cut" "$work/watchdog" 2 2> "$work/cut.txt" &
killed=$!
snapshot_of "$work/cut" 1 "$killed"
kill -9 "$killed"
code=0
wait "$killed" || code=$?
[ "$code" -eq 137 ] && [ -s "$work/cut/run" ] && [ -s "$work/cut/image-0.png" ] && [ ! -e "$work/cut/image-1.png" ]
appliance "$work/cut" "$work/kicks" 2 2> "$work/resumed.txt"
grep -E "^image 1: resumed after step [0-9]+ of 12$" "$work/resumed.txt"
for image in image-0.png image-1.png; do
    cmp "$work/whole/$image" "$work/cut/$image"
done
# Stopped in order, it goes on as well; a state that is damaged starts over.
pipe "$work/stop" 4
HOME=$work/home TMPDIR=/nowhere "$work/appliance" "$work/whole" "$work/stop" 3 2> "$work/stopped.txt" &
stopped=$!
snapshot_of "$work/whole" 2 "$stopped"
kill -TERM "$stopped"
# It may be another thread's system call that the signal interrupts.
head -c 65000 <&5 > /dev/null
wait "$stopped"
grep "^image 2: stopped$" "$work/stopped.txt"
cp -r "$work/whole" "$work/damaged"
printf 'x' | dd of="$work/damaged/run" bs=1 seek=100 conv=notrunc status=none
for folder in whole damaged; do
    appliance "$work/$folder" "$work/kicks" 3 2> "$work/$folder.txt"
done
grep "^image 2: resumed after step" "$work/whole.txt"
grep "damaged or truncated: the image starts over$" "$work/damaged.txt"
cmp "$work/whole/image-2.png" "$work/damaged/image-2.png"
# A budget that is too small is refused with the least that would do.
code=0
appliance "$work/cut" "$work/kicks" 3 20 2> "$work/small.txt" || code=$?
[ "$code" -eq 5 ] && grep "memory: expected at least" "$work/small.txt"
[ -z "$(find "$work/home" -mindepth 1)" ] && [ -z "$(find "$work/whole" "$work/cut" -name '*.new' -o -name '*.tmp')" ]
echo "the appliance went on after its power was cut"
