#!/usr/bin/env bash
# Makes what people install: a folder to unpack anywhere, and a Debian package. Times, owners, order, paths and the number
# of threads that compress are fixed, so that two runs give the same bytes.
# Usage: cross/package.sh FOLDER [amd64 | arm64]...
# `SOURCE_DATE_EPOCH` is the time that all files get; the last commit's, if it is not set.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
umask 022
export LC_ALL=C

# Of a compressed package, without what the built-in model takes of it.
budget_bytes=30000000

fail() {
    echo "cross/package.sh: $*" >&2
    exit 1
}

[ $# -gt 0 ] || fail "expected a folder to write to, got nothing"
mkdir -p "$1"
destination=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- amd64 arm64
for tool in dpkg-deb zstd xz tar git; do
    command -v "$tool" >/dev/null || fail "$tool: not found"
done
home=$(cross/toolchain.sh)
floor=$(cat "$home/glibc_floor")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
model_bytes=$(cat models/builtin/weights/* | zstd -19 --threads=1 | wc -c)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The program: no path of this machine in it, neither of its sources nor of a library.
build() {
    local processor=$1 target=$1-unknown-linux-gnu linker
    linker=CARGO_TARGET_${processor^^}_UNKNOWN_LINUX_GNU_LINKER
    env RUSTC="$home/bin/rustc" "$linker=$home/bin/cc-$processor" CALOTYPE_ORT=system CARGO_INCREMENTAL=0 \
        CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/package}" \
        RUSTFLAGS="--remap-path-prefix=$PWD=calotype --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo --remap-path-prefix=$home=toolchain" \
        cargo build --locked --release --features server --target "$target"
    program=${CARGO_TARGET_DIR:-target/package}/$target/release/calotype
    cross/glibc_floor.sh "$floor" "$program"
    if grep --quiet --text --fixed-strings -e "$PWD/" -e "$home" -e "${CARGO_HOME:-$HOME/.cargo}/" "$program"; then
        fail "$program: has paths of this machine in it"
    fi
}

# ONNX Runtime's wheel, as pinned by the build.
runtime() {
    local processor=$1 pin wheel_version sha256
    pin=$(sed -n "/^const ${processor^^}_LINUX: Pin/,/^}/p" build/onnxruntime.rs)
    wheel_version=$(sed -n 's/^const VERSION: &str = "\(.*\)";/\1/p' build/onnxruntime.rs)
    sha256=$(sed -n 's/.*wheel_sha256: "\(.*\)",/\1/p' <<<"$pin")
    [ -n "$wheel_version" ] && [ -n "$sha256" ] || fail "build/onnxruntime.rs: expected a pin for $processor, got none"
    mkdir "$work/wheel"
    echo "onnxruntime==$wheel_version --hash=sha256:$sha256" > "$work/requirements.txt"
    python3 -m pip --quiet --disable-pip-version-check download --no-deps --only-binary=:all: --require-hashes \
        --platform "manylinux_2_28_$processor" --python-version 3.11 --requirement "$work/requirements.txt" \
        --dest "$work/wheel"
    python3 -m zipfile -e "$work"/wheel/*.whl "$work/wheel"
    library=$work/wheel/onnxruntime/capi/libonnxruntime.so.$wheel_version
    cross/glibc_floor.sh "$floor" "$library"
}

# What the licences ask for, and what the built-in model is made of.
documents() {
    local processor=$1 folder=$2
    install -d "$folder/licences"
    install -m 644 README.md LICENSE-MIT LICENSE-APACHE "$folder"
    install -m 644 models/builtin/MODEL_CARD.md "$folder"
    install -m 644 models/upscaler/LICENSE "$folder/licences/upscaler.txt"
    install -m 644 "$work/wheel/onnxruntime/LICENSE" "$folder/licences/onnxruntime.txt"
    install -m 644 "$work/wheel/onnxruntime/ThirdPartyNotices.txt" "$folder/licences/onnxruntime_third_party.txt"
    install -m 644 "$home/root/usr/lib/rustlib/src/rust/COPYRIGHT" "$folder/licences/rust.txt"
    install -m 644 "$home/python/ziglang/LICENSE" "$folder/licences/zig.txt"
    install -m 644 "$home/python/ziglang/lib/libunwind/LICENSE.TXT" "$folder/licences/libunwind.txt"
    install -m 644 "$home/python/ziglang/lib/libc/glibc/LICENSES" "$folder/licences/glibc.txt"
    python3 cross/licences.py "$processor-unknown-linux-gnu" > "$folder/licences/crates.txt"
}

archive() {
    local name=calotype-$version-linux-$1 processor=$2
    install -d "$work/archive/$name"
    install -m 755 "$program" "$work/archive/$name/calotype"
    install -m 644 "$library" "$work/archive/$name/libonnxruntime.so"
    documents "$processor" "$work/archive/$name"
    tar --create --directory "$work/archive" --format=gnu --sort=name --owner=0 --group=0 --numeric-owner \
        --mtime="@$SOURCE_DATE_EPOCH" "$name" | zstd --quiet -19 --threads=1 --force -o "$destination/$name.tar.zst"
    fits "$destination/$name.tar.zst"
}

# The program looks for the library beside itself, so both lie in a folder of their own, and the path has a link.
debian() {
    local architecture=$1 processor=$2 tree=$work/debian file
    local documents=$tree/usr/share/doc/calotype
    install -d "$tree/DEBIAN" "$tree/usr/bin" "$tree/usr/lib/calotype" "$documents"
    install -m 755 "$program" "$tree/usr/lib/calotype/calotype"
    install -m 644 "$library" "$tree/usr/lib/calotype/libonnxruntime.so"
    ln -s ../lib/calotype/calotype "$tree/usr/bin/calotype"
    install -D -m 644 -t "$tree/usr/lib/systemd/system" cross/calotype.service cross/calotype.socket
    documents "$processor" "$documents"
    {
        echo "calotype is under the MIT licence or the Apache License 2.0, at your choice; on Debian systems the latter is"
        echo "in /usr/share/common-licenses/Apache-2.0. What else is in this package is under the texts in licences/."
        echo
        cat LICENSE-MIT
    } > "$documents/copyright"
    chmod 644 "$documents/copyright"
    (cd "$tree" && find usr -type f | sort | xargs md5sum) > "$tree/DEBIAN/md5sums"
    cat > "$tree/DEBIAN/control" <<CONTROL
Package: calotype
Version: $version
Architecture: $architecture
Maintainer: The calotype authors <calotype@calotype.invalid>
Installed-Size: $(du --summarize --apparent-size --block-size=1024 "$tree/usr" | cut -f1)
Depends: libc6 (>= $floor), libgcc-s1, libstdc++6
Section: graphics
Priority: optional
Description: generates images from text prompts on the local device
 A runtime for latent diffusion with ONNX Runtime, its CPU library, and a small model built in.
CONTROL
    file=$destination/calotype_${version}_$architecture.deb
    find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$tree" "$file" >/dev/null
    fits "$file"
}

fits() {
    local size_bytes
    size_bytes=$(stat --format=%s "$1")
    [ $((size_bytes - model_bytes)) -le "$budget_bytes" ] ||
        fail "$1: expected at most $budget_bytes bytes without the model, got $((size_bytes - model_bytes))"
    echo "$1: $size_bytes bytes, $((size_bytes - model_bytes)) of them not the model's"
}

for architecture; do
    case $architecture in
        amd64) processor=x86_64 ;;
        arm64) processor=aarch64 ;;
        *) fail "expected amd64 or arm64, got $architecture" ;;
    esac
    rm -rf "${work:?}"/*
    build "$processor"
    runtime "$processor"
    archive "$architecture" "$processor"
    debian "$architecture" "$processor"
done
