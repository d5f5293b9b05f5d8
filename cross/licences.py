"""Writes the licences of the crates that are linked into the program: their names, then each text once.

It knows nothing of ONNX Runtime and of the toolchain, whose texts are files of their own in a package.

    python3 cross/licences.py aarch64-unknown-linux-gnu > crates.txt
"""

import json
import subprocess
import sys
from pathlib import Path

# What files with licences and notices are called.
STEMS = ("licence", "license", "copying", "copyright", "notice", "unlicense")
OURS = Path(__file__).resolve().parent.parent
# Of crates without a text: one that they may be used under, and where its words are.
STANDARD_TEXTS = {"Apache-2.0": OURS / "LICENSE-APACHE"}


def linked_crates(target: str) -> list[dict]:
    """The packages that calotype's normal dependencies reach, by name and version; without calotype itself."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=OURS).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    reached, ahead = set(), [root]
    while ahead:
        node = ahead.pop()
        if node in reached or is_macro(packages[node]):
            continue
        reached.add(node)
        ahead += [dep["pkg"] for dep in nodes[node]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
    return sorted((packages[id] for id in reached - {root}), key=lambda crate: (crate["name"], crate["version"]))


def is_macro(package: dict) -> bool:
    """Whether it runs while compiling only."""
    return any("proc-macro" in target["kind"] for target in package["targets"])


def texts_beside(crate: dict) -> list[Path]:
    """The files of its licences and notices."""
    folder = Path(crate["manifest_path"]).parent
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().startswith(STEMS)]
    return found or ([folder / crate["license_file"]] if crate["license_file"] else [])


def texts_of(crate: dict, crates: list[dict]) -> list[tuple[str, str]]:
    """Names and contents of its licences and notices."""
    found = texts_beside(crate)
    if not found:
        found = [path for name, path in STANDARD_TEXTS.items() if name in (crate["license"] or "")]
    if not found and crate["repository"]:
        # Of the same makers, who put the text beside another crate of theirs.
        keys = ("repository", "license", "authors")
        of_these = (other for other in crates if all(other[key] == crate[key] for key in keys))
        found = next((texts for other in of_these if (texts := texts_beside(other))), [])
    if not found:
        raise SystemExit(f"{crate['name']} {crate['version']}: expected a licence file, got none ({crate['license']})")
    return [(path.name, path.read_text(encoding="utf-8", errors="replace").strip()) for path in found]


def main(target: str) -> None:
    crates = linked_crates(target)
    users: dict[str, list[str]] = {}
    print("Rust crates in this program\n")
    for crate in crates:
        print(f"  {crate['name']} {crate['version']}: {crate['license']}")
        for name, text in texts_of(crate, crates):
            users.setdefault(text, []).append(f"{crate['name']} {crate['version']} ({name})")
    for text, names in users.items():
        print("\n" + "-" * 100 + "\n" + "\n".join(names) + "\n\n" + text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("expected one argument, the target")
    main(sys.argv[1])
