"""Numbers of golden files in as many digits as tell them apart."""

from __future__ import annotations

from typing import Any


def short(value: Any, digits: int = 9) -> Any:
    """All numbers in a value rounded; nine significant digits tell every float32 from its neighbours."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, list):
        return [short(item, digits) for item in value]
    if isinstance(value, dict):
        return {key: short(item, digits) for key, item in value.items()}
    return value
