#!/usr/bin/env bash
# Builds the wheel, installs it with what it needs into a fresh environment, and runs its tests there:
#     tests/python/run.sh target/debug/calotype
# The program is the one with which images are compared. Cargo's profile is `dev`, whose crates the tests have built.
set -euo pipefail
program=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
grep -E '^(mypy|numpy|pillow)==' export/requirements.txt > "$work/requirements.txt"
# ONNX Runtime of the version that the build fetches for the program, so that sums are rounded alike.
version=$(sed -n 's/^const VERSION: &str = "\(.*\)";$/\1/p' build/onnxruntime.rs)
printf 'maturin==1.16.0\nonnxruntime==%s\n' "$version" >> "$work/requirements.txt"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$work/requirements.txt"

started=$SECONDS
# The library is compiled once more, with the module's features; of all time most is optimising, which tests of so few do not need.
"$work/venv/bin/maturin" build --quiet --locked --profile dev --strip --out "$work/wheels" \
    --config profile.dev.package.calotype.opt-level=0 --config profile.dev.package.calotype.debug=false
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-index --find-links "$work/wheels" calotype
echo "a wheel of $(du -m "$work"/wheels/*.whl | cut -f 1) MiB, built in $((SECONDS - started)) s"
"$work/venv/bin/python" -m zipfile --list "$work"/wheels/*.whl > "$work/files.txt"
for file in calotype/__init__.pyi calotype/py.typed licenses/LICENSE-APACHE licenses/LICENSE-MIT sboms/; do
    grep --quiet --fixed-strings "$file" "$work/files.txt"
done

# Nothing of the repository is imported.
cp tests/python/*.py "$work"
cd "$work"
started=$SECONDS
"$work/venv/bin/mypy" --strict --no-incremental typed.py test_calotype.py
# The shared library within the package has the package's types.
echo 'calotype\.calotype' > "$work/allowed.txt"
"$work/venv/bin/python" -m mypy.stubtest --allowlist "$work/allowed.txt" calotype
echo "types checked in $((SECONDS - started)) s"
started=$SECONDS
"$work/venv/bin/python" typed.py
CALOTYPE=$program "$work/venv/bin/python" -W error -m unittest test_calotype
echo "tested in $((SECONDS - started)) s"
