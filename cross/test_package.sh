#!/usr/bin/env bash
# Installs what `cross/package.sh` made, each form in a scratch folder, makes a picture with it, removes it again and
# looks for what is left. ARM's programs run under emulation.
# Usage: cross/test_package.sh FOLDER [amd64 | arm64]...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export LC_ALL=C

fail() {
    echo "cross/test_package.sh: $*" >&2
    exit 1
}

[ $# -gt 0 ] || fail "expected the folder of the packages, got nothing"
packages=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- amd64 arm64
CALOTYPE_CROSS=$("$here/toolchain.sh")
export CALOTYPE_CROSS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Runs a program with nothing in its environment that could help it to a library.
run() {
    case $architecture in
        amd64) env -i HOME="$work" "$@" ;;
        arm64) env -i HOME="$work" PATH="$PATH" CALOTYPE_CROSS="$CALOTYPE_CROSS" "$here/run_aarch64.sh" "$@" ;;
        *) fail "expected amd64 or arm64, got $architecture" ;;
    esac
}

draws() {
    local program=$1 picture=$2 library
    library=$(run "$program" doctor | sed -n 's/^ONNX Runtime .* from //p')
    [ -n "$library" ] && [ "$(dirname "$(realpath "$library")")" = "$(dirname "$(realpath "$program")")" ] ||
        fail "$program: expected the library beside it, got ${library:-none}"
    run "$program" generate "a red apple on a blue background" --steps 1 --seed 1 -o "$picture" >/dev/null 2>&1 ||
        fail "$program: draws nothing"
    [ "$(head -c 8 "$picture" | od -An -tx1 | tr -d ' ')" = 89504e470d0a1a0a ] || fail "$picture: expected a PNG file"
}

has() {
    local folder=$1 name
    shift
    for name; do
        [ -s "$folder/$name" ] || fail "$folder: expected $name, got none"
    done
}

documents=(README.md LICENSE-MIT LICENSE-APACHE MODEL_CARD.md licences/{crates,upscaler,rust,zig,libunwind,glibc,onnxruntime,onnxruntime_third_party}.txt)

for architecture; do
    archive=$(echo "$packages"/calotype-*-linux-"$architecture".tar.zst)
    package=$(echo "$packages"/calotype_*_"$architecture".deb)
    [ -e "$archive" ] && [ -e "$package" ] || fail "$packages: expected one archive and one package for $architecture"

    # The folder works wherever it is put.
    mkdir -p "$work/unpacked"
    tar --extract --zstd --file "$archive" --directory "$work/unpacked"
    mv "$work/unpacked"/calotype-* "$work/moved"
    has "$work/moved" calotype libonnxruntime.so "${documents[@]}"
    draws "$work/moved/calotype" "$work/archive.png"

    # The package goes through dpkg as on a device, but into a root of its own.
    root=$work/root
    mkdir -p "$root/var/lib/dpkg"/{info,updates}
    touch "$root/var/lib/dpkg"/{status,available}
    found() {
        (cd "$root" && find . -path ./var/lib/dpkg -prune -o -print | sort)
    }
    before=$(found)
    dpkg_here=(dpkg --root="$root" --log=/dev/null --force-not-root --force-depends --force-architecture --force-bad-path)
    "${dpkg_here[@]}" --install "$package" >/dev/null 2>"$work/dpkg" || fail "dpkg: $(cat "$work/dpkg")"
    has "$root/usr/lib/calotype" calotype libonnxruntime.so
    has "$root/usr/share/doc/calotype" copyright "${documents[@]}"
    has "$root/usr/lib/systemd/system" calotype.service calotype.socket
    # It succeeds whatever it finds.
    unlike=$("${dpkg_here[@]}" --verify calotype)
    [ -z "$unlike" ] || fail "$package: installed files are not those of its list: $unlike"
    draws "$root/usr/bin/calotype" "$work/package.png"
    cmp "$work/archive.png" "$work/package.png" || fail "expected the same picture of both forms"
    "${dpkg_here[@]}" --purge calotype >/dev/null 2>"$work/dpkg" || fail "dpkg: $(cat "$work/dpkg")"
    left=$(comm -13 <(echo "$before") <(found))
    [ -z "$left" ] || fail "$package: left behind: $left"

    rm -rf "${work:?}"/*
    echo "$architecture: both forms draw, and leave nothing"
done
