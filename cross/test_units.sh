#!/usr/bin/env bash
# Checks the systemd units, and runs the server under a systemd of its own, in namespaces of its own: started, watched, asked for
# an image, restarted after it hung, opened by its socket, stopped.
# Usage: cross/test_units.sh PROGRAM
# Needs root and systemd 252 or later; ends with 3 where it cannot run for want of them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
    echo "cross/test_units.sh: $*" >&2
    exit 1
}

# Of 10, by `systemd-analyze security`: lower is safer.
exposure=1.5

# What runs in the namespaces, as their first process: a scratch root over the machine's own, then systemd.
if [ "${1:-}" = --inside ]; then
    work=$2
    for folder in /run /tmp; do
        mount -t tmpfs tmpfs "$folder"
    done
    for folder in usr etc var; do
        mkdir -p "$work/$folder" "$work/$folder.work"
        mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$work/$folder,workdir=$work/$folder.work" "/$folder"
    done
    # The service alone: what else a machine starts (udev, sysctl, cleaning of files) would change this one.
    mkdir -p /run/systemd/system/calotype.{service,socket}.d
    for unit in service socket; do
        printf '[Unit]\nDefaultDependencies=no\n' > "/run/systemd/system/calotype.$unit.d/alone.conf"
    done
    ip link set lo up
    export container=calotype
    exec /lib/systemd/systemd --system --unit=calotype.service --log-target=console --show-status=no
fi

[ $# -eq 1 ] || fail "expected the program, got $# arguments"
program=$(realpath "$1")
cannot() {
    echo "cross/test_units.sh: $*" >&2
    exit 3
}
[ "$(id -u)" -eq 0 ] || cannot "expected to be root"
for tool in systemd-analyze systemctl unshare nsenter ip curl python3 setsid; do
    command -v "$tool" >/dev/null || cannot "$tool: not found"
done
unshare --fork --pid --mount --mount-proc --uts --ipc --net --cgroup true 2>/dev/null || cannot "expected namespaces"
work=$(mktemp -d /var/tmp/calotype.XXXXXX)
cleanup() {
    if [ -n "${boot:-}" ]; then
        kill -KILL "$boot" 2>/dev/null || true
        wait "$boot" 2>/dev/null || true
    fi
    umount --lazy "$work/disk" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# The files of the package, over the machine's own. An overlay cannot lie on another one, which /tmp may be.
mkdir -p "$work/disk"
mount -t tmpfs tmpfs "$work/disk"
install -D -m 755 "$program" "$work/disk/usr/lib/calotype/calotype"
library=$("$program" doctor | sed -n 's/^ONNX Runtime .* from //p')
install -m 644 "$library" "$work/disk/usr/lib/calotype/libonnxruntime.so"
mkdir -p "$work/disk/usr/bin" "$work/disk/usr/lib/systemd/system"
ln -s ../lib/calotype/calotype "$work/disk/usr/bin/calotype"
install -m 644 "$here/calotype.service" "$here/calotype.socket" "$work/disk/usr/lib/systemd/system"

systemd-analyze security --offline=yes --threshold="$(python3 -c "print(round($exposure * 10))")" \
    "$here/calotype.service" > "$work/security" || fail "calotype.service: $(tail -n 1 "$work/security")"

setsid unshare --fork --kill-child --pid --mount --mount-proc --uts --ipc --net --cgroup \
    "$here/test_units.sh" --inside "$work/disk" > "$work/log" 2>&1 &
boot=$!
# The first process in the namespaces.
first=""
for _ in $(seq 100); do
    first=$(pgrep --parent "$boot" systemd || true)
    [ -z "$first" ] || break
    sleep 0.1
done
[ -n "$first" ] || fail "no systemd: $(cat "$work/log")"
inside() {
    timeout 60 nsenter --target "$first" --all "$@"
}
# Waits until a command succeeds.
until_ok() {
    local what=$1
    shift
    for _ in $(seq 300); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.2
    done
    inside systemctl --no-pager status calotype.service >&2 || true
    tail -n 30 "$work/log" >&2
    fail "$what"
}
property() {
    inside systemctl show --property "$1" --value calotype.service
}
is_active() {
    [ "$(property ActiveState)" = active ]
}

inside systemd-analyze verify calotype.service calotype.socket 2> "$work/verify"
! grep -q calotype "$work/verify" || fail "$(cat "$work/verify")"

until_ok "expected an active service" is_active
[ "$(property Type)" = notify ] || fail "expected to wait for readiness, got $(property Type)"
[[ "$(property StatusText)" == "serving at http://127.0.0.1:7860" ]] || fail "status: got $(property StatusText)"
inside curl --silent --fail http://127.0.0.1:7860/v1/images/generations --header 'Content-Type: application/json' \
    --data '{"prompt": "a red apple on a white background", "seed": 1}' > "$work/reply" ||
    fail "no image: $(cat "$work/reply")"
python3 - "$work/reply" <<'PYTHON' || fail "expected a PNG image"
import base64, json, sys
image = base64.b64decode(json.load(open(sys.argv[1]))["data"][0]["b64_json"])
sys.exit(image[:8] != b"\x89PNG\r\n\x1a\n")
PYTHON
[ "$(inside stat --format=%u "/proc/$(property MainPID)")" -ge 61184 ] || fail "expected a user of its own"

# A process that hangs gives no signs of life, and is replaced.
inside sh -c 'printf "[Service]\nWatchdogSec=2\nRestartSec=0\n" > /run/systemd/system/calotype.service.d/watchdog.conf'
inside systemctl daemon-reload
inside systemctl restart calotype.service
hung=$(property MainPID)
inside kill -STOP "$hung"
is_replaced() {
    is_active && [ "$(property MainPID)" != "$hung" ]
}
until_ok "expected another process for one that hangs" is_replaced
[ "$(property NRestarts)" -ge 1 ] || fail "expected a restart"

# A stop in order.
inside systemctl stop calotype.service
[ "$(property Result)" = success ] || fail "expected to stop in order, got $(property Result)"

# The first connection starts it.
inside systemctl start calotype.socket
! is_active || fail "expected the socket alone"
until_ok "expected a reply through the socket" inside curl --silent --fail http://127.0.0.1:7860/healthz
is_active || fail "expected an active service after a connection"
echo "units: $(grep -o 'exposure level.* [0-9.]*' "$work/security"); run, restarted, opened by the socket, stopped"
