"""Writes every_field.onnx: a ModelProto that sets every field of every message of the schema once.

The reference implementation's own descriptors say what the fields are, so the test that reads the file and writes it
again notices a field that `src/graph/proto.rs` forgets. It is not a model that could run.

    pip install onnx==1.23.2 && python every_field.py
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import onnx

counter = itertools.count(1)
done: set[tuple[str, int]] = set()


def fill(message: Any, member: int) -> None:
    """Sets every field of `message`, and of its oneof the given member; a kind that was filled before stays empty."""
    kind = message.DESCRIPTOR
    if (kind.full_name, member) in done:
        return
    done.add((kind.full_name, member))
    for field in kind.fields:
        oneof = field.containing_oneof
        if oneof is not None and oneof.fields[member] is not field:
            continue
        if field.message_type is None:
            if field.is_repeated:
                getattr(message, field.name).extend([scalar(field), scalar(field)])
            else:
                setattr(message, field.name, scalar(field))
        elif field.is_repeated:
            for child_member in range(members(field.message_type)):
                fill(getattr(message, field.name).add(), child_member)
        else:
            child = getattr(message, field.name)
            child.SetInParent()
            fill(child, 0)


def members(kind: Any) -> int:
    """How many members the oneof of this kind has; 1 without one."""
    return max((len(oneof.fields) for oneof in kind.oneofs), default=1)


def scalar(field: Any) -> Any:
    """A value that no other field has."""
    value = next(counter)
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    if field.type == field.TYPE_STRING:
        return str(value)
    if field.type == field.TYPE_BYTES:
        return bytes([0, 255]) + str(value).encode()
    if field.type in (field.TYPE_INT32, field.TYPE_INT64):
        return -value
    return value


def main() -> None:
    model = onnx.ModelProto()
    fill(model, 0)
    messages = {kind.full_name for kind in kinds(onnx.ModelProto.DESCRIPTOR, set())}
    missing = messages - {name for name, _ in done}
    assert not missing, missing
    Path(__file__).with_name("every_field.onnx").write_bytes(model.SerializeToString(deterministic=True))


def kinds(kind: Any, found: set[Any]) -> set[Any]:
    """Every message kind that can occur inside `kind`."""
    if kind not in found:
        found.add(kind)
        for field in kind.fields:
            if field.message_type is not None:
                kinds(field.message_type, found)
    return found


if __name__ == "__main__":
    main()
