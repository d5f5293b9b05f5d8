#!/usr/bin/env bash
# Puts compilers, libraries and an emulator for other processors into a cache folder, without root and without a trace in
# the system, and prints the folder. It knows nothing of what is built with them.
# Usage: cross/toolchain.sh
# Ends with 3 where it cannot be had: on another system, or without network.
#
# From Debian: a rustc with the standard libraries of amd64 and arm64, its sources, arm64's C library, and qemu.
# From PyPI: Zig as linker (it knows the symbols of old glibc versions) and cargo-zigbuild, which speaks to it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# `ort` needs it.
oldest_rust=1.92
# Debian 12's own, 7.2, crashes when a library reads /proc/cpuinfo to learn what the CPU can do.
oldest_qemu=8
# The glibc that programs may expect: that of ONNX Runtime's own library. JetPack 5 and Raspberry Pi OS 11 have 2.31.
floor=2.28

cache=${CALOTYPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/calotype}/cross
# Another recipe is another toolchain.
recipe=$(cat "$here/toolchain.sh" "$here/requirements.txt" | sha256sum | cut -c1-12)
home=$cache/$recipe

unavailable() {
    echo "cross/toolchain.sh: $*" >&2
    exit 3
}

not_older() {
    printf '%s\n%s\n' "$1" "$2" | sort --version-sort --check=quiet
}

if [ -e "$home" ]; then
    echo "$home"
    exit
fi

for tool in apt-get dpkg python3 cargo readelf sha256sum; do
    command -v "$tool" >/dev/null || unavailable "$tool: not found"
done
python3 -m pip --version >/dev/null 2>&1 || unavailable "python3: has no pip"
# shellcheck source=/dev/null
system=$(. /etc/os-release && echo "${VERSION_CODENAME:-$ID}")
machine=$(dpkg --print-architecture)
[ "$system $machine" = "bookworm amd64" ] ||
    unavailable "expected Debian 12 (bookworm) on amd64, got $system on $machine: only its packages are known here.
With a Rust toolchain that has the target's standard library, cargo-zigbuild and qemu-user are all that is needed:
cross/README.md, \"Elsewhere\""

# Made under another name and moved into place, so that a folder of that name is whole.
mkdir -p "$cache"
new=$(mktemp -d "$cache/.new.XXXXXX")
chmod 755 "$new"
trap 'rm -rf "$new"' EXIT
mkdir -p "$new"/{bin,root,python} "$new"/apt/{lists/partial,cache/archives/partial,packages}
touch "$new/apt/status"

# The mirrors are those that this machine uses.
# shellcheck disable=SC2016 # The names are apt's.
mirrors=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | sort -u)
mirror_of() {
    local mirror
    mirror=$(awk -v release="$1" '$2 == release { print $1; exit }' <<<"$mirrors")
    [ -n "$mirror" ] || unavailable "apt: has no source for $1"
    echo "$mirror"
}
main=$(mirror_of bookworm)
security=$(mirror_of bookworm-security)
key=/usr/share/keyrings/debian-archive-keyring.gpg
cat > "$new/apt/sources.list" <<LIST
deb [arch=amd64,arm64 signed-by=$key] $main bookworm main
deb [arch=amd64,arm64 signed-by=$key] $security bookworm-security main
deb [arch=amd64 signed-by=$key] $main bookworm-backports main
LIST
cat > "$new/apt/apt.conf" <<CONF
Dir::State "$new/apt";
Dir::State::status "$new/apt/status";
Dir::Cache "$new/apt/cache";
Dir::Etc::sourcelist "$new/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Architecture "amd64";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
CONF
export APT_CONFIG=$new/apt/apt.conf
# Without the option it succeeds when a mirror cannot be reached.
apt-get --quiet --quiet --option APT::Update::Error-Mode=any update >&2 || unavailable "apt: cannot read its lists"

newest() {
    apt-cache show --no-all-versions "$1" | sed -n 's/^Version: //p'
}
rust=$(newest rustc-web)
[ -n "$rust" ] || unavailable "rustc-web: not on the mirror"
release=$(cut -d. -f1,2 <<<"$rust")
not_older "$oldest_rust" "$release" ||
    unavailable "rustc-web: expected $oldest_rust or newer, got $rust"
llvm=$(apt-cache depends "libstd-rust-web-$release:amd64" | grep -oE 'libllvm[0-9]+' | head -1)

(
    cd "$new/apt/packages"
    apt-get --quiet --quiet download "rustc-web=$rust" "libstd-rust-web-$release:amd64=$rust" \
        "libstd-rust-web-dev:amd64=$rust" "libstd-rust-web-dev:arm64=$rust" "rust-web-src=$rust" "$llvm:amd64" \
        libc6-arm64-cross:all libgcc-s1-arm64-cross:all libstdc++6-arm64-cross:all qemu-user/bookworm-backports >&2 ||
        unavailable "apt: expected packages of rustc-web $rust for amd64 and arm64; if the mirror is out of step, try again later"
    for package in *.deb; do
        dpkg --extract "$package" "$new/root"
    done
)
find "$new/root/usr/bin" -name 'qemu-*' ! -name qemu-aarch64 -delete
# Of the sources only those of the standard library are needed (cargo finds them by a link); of the rest, no manuals.
sources=$new/root/usr/lib/rustlib/src/rust
find "$sources/" -mindepth 1 -maxdepth 1 ! -name library ! -name COPYRIGHT -exec rm -r {} +
rm -r "$new/root/usr/share"
python3 -m pip --quiet --disable-pip-version-check install --no-deps --only-binary=:all: \
    --require-hashes --root-user-action=ignore --target "$new/python" --requirement "$here/requirements.txt" >&2 ||
    unavailable "pip: expected the wheels of cross/requirements.txt"

rm -rf "$new/apt"
echo "$floor" > "$new/glibc_floor"

# The folder is renamed when it is whole, so the wrappers find it by their own place. Cargo compares paths as text, so
# none may have `..` in it.
wrap() {
    cat > "$new/bin/$1"
    chmod +x "$new/bin/$1"
}
for program in rustc rustdoc; do
    wrap "$program" <<WRAPPER
#!/bin/sh
home=\${0%/bin/*}
LD_LIBRARY_PATH=\$home/root/usr/lib/x86_64-linux-gnu exec "\$home/root/usr/bin/$program" --sysroot "\$home/root/usr" "\$@"
WRAPPER
done
for processor in aarch64 x86_64; do
    wrap "cc-$processor" <<WRAPPER
#!/bin/sh
home=\${0%/bin/*}
unset LD_LIBRARY_PATH
export CARGO_ZIGBUILD_ZIG_PATH="\$home/python/ziglang/zig" ZIG_GLOBAL_CACHE_DIR="\$home/zig"
exec "\$home/python/bin/cargo-zigbuild" zig cc -- -target $processor-linux-gnu.$floor "\$@"
WRAPPER
done
wrap qemu-aarch64 <<'WRAPPER'
#!/bin/sh
home=${0%/bin/*}
exec "$home/root/usr/bin/qemu-aarch64" -L "$home/root/usr/aarch64-linux-gnu" "$@"
WRAPPER

"$new/bin/rustc" --version >&2
qemu=$("$new/bin/qemu-aarch64" --version | sed -n 's/^qemu-aarch64 version \([0-9.]*\).*/\1/p')
echo "qemu ${qemu:-of no version}" >&2
not_older "$oldest_qemu" "$qemu" || unavailable "qemu-aarch64: expected $oldest_qemu or newer, got ${qemu:-no version}"
mv -T "$new" "$home"
trap - EXIT
echo "$home"
