#!/usr/bin/env bash
# Says which glibc a program or library needs, and fails when that is newer than the floor.
# Usage: cross/glibc_floor.sh FLOOR FILE...
set -euo pipefail
floor=$1
shift
[ $# -gt 0 ] || { echo "cross/glibc_floor.sh: expected files to look at, got none" >&2; exit 2; }
for file; do
    needs=$(LC_ALL=C readelf --version-info --wide "$file")
    newest=$(sed -n '/^Version needs section/,$s/.*Name: GLIBC_\([0-9.]*\).*/\1/p' <<<"$needs" | sort --version-sort | tail -1)
    # A file that needs no version at all is no program of ours, or was not understood.
    [ -n "$newest" ] || { echo "$file: expected symbols of glibc, got none" >&2; exit 1; }
    printf '%s\n%s\n' "$newest" "$floor" | sort --version-sort --check=quiet ||
        { echo "$file: expected glibc $floor or older, got a need of $newest" >&2; exit 1; }
    echo "$file: needs glibc $newest"
done
