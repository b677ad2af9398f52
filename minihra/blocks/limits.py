"""What the values of a configuration may be. Each check raises a ValueError that names the value."""

import sys
from collections.abc import Callable
from typing import Any

MOST = 10**6
"""The largest size: with absurd ones even the shapes of parameters would take minutes, or overflow."""


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold, and no NaN or infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def must_be_whole(name: str, value: Any, least: int = 1, most: int = MOST) -> None:
    """Raise ValueError if a value is no whole number from `least` to `most`."""
    if not is_whole(value, least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def must_be_above(name: str, value: Any, bound: float) -> None:
    """Raise ValueError if a value is no finite number above `bound`."""
    if not is_finite(value) or value <= bound:
        raise ValueError(f"{name} must be a finite number above {bound:g}, got {value!r}")


def must_be_one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Raise ValueError if a value is none of those that are known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")


def must_be_pair(name: str, value: Any, what: str, holds: Callable[[Any], bool]) -> None:
    """Raise ValueError if a value is not a pair of which `holds` is true for both."""
    if not isinstance(value, tuple) or len(value) != 2 or not all(map(holds, value)):
        raise ValueError(f"{name} must be a pair of {what}, got {value!r}")
