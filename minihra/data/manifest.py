"""Manifests: which recordings there are, what is said in them, and which of them a run takes.

A manifest is a text file with one JSON object a line, with NeMo's keys: `audio_filepath` (relative to the manifest),
`text`, and any others, such as `speaker` or `split`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minihra.data.faults import Faults

REQUIRED = ("audio_filepath", "text")


class Row(NamedTuple):
    """One line of a manifest."""

    path: Path  # of the recording
    text: str
    fields: dict[str, Any]  # all that the line says
    place: str  # "manifest.jsonl, line 12"


class Where(NamedTuple):
    """A condition on the rows: the field `key` has one of `values`, or with `differs` none of them."""

    key: str
    values: tuple[str, ...]
    differs: bool

    def __str__(self) -> str:
        return f"{self.key}{'!=' if self.differs else '='}{','.join(self.values)}"

    def holds(self, row: Row) -> bool:
        """Return whether a row is taken. A row without the field has no value that could be equal."""
        found = self.key in row.fields and str(row.fields[self.key]) in self.values
        return found != self.differs


def parse_where(condition: str) -> Where:
    """Return the condition that `KEY=V1,V2` or `KEY!=V1,V2` stands for.

    Raises:
        ValueError: it is of another form.
    """
    key, sign, values = condition.partition("=")
    differs = key.endswith("!")
    key = key.removesuffix("!")
    if not sign or not key or not values:
        raise ValueError(f"a condition has the form KEY=V1,V2 or KEY!=V, got {condition!r}")
    return Where(key, tuple(values.split(",")), differs)


def read_manifest(path: str | Path, faults: Faults) -> list[Row]:
    """Return the rows of a manifest; what is wrong with a line is added to `faults`, and the line left out.

    Raises:
        ValueError: the manifest is missing, is not UTF-8, or has no line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # -sig: Windows may write a mark before it
    except OSError as error:
        raise ValueError(f"{path}: the manifest cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the manifest is not UTF-8 text ({error.reason} at byte {error.start})") from None
    rows, empty = [], True
    for number, line in enumerate(lines, start=1):
        if line.strip():
            empty = False
            place = f"{path}, line {number}"
            try:
                rows.append(parse_row(line, path.parent, place))
            except ValueError as error:
                faults.add(f"{place}: {error}")
    if empty:
        raise ValueError(f"{path}: the manifest is empty")
    return rows


def parse_row(line: str, folder: Path, place: str) -> Row:
    """Return the row of one line.

    Raises:
        ValueError: the line is not a JSON object, or lacks a key.
    """
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    for key in REQUIRED:
        if not isinstance(fields.get(key), str):
            raise ValueError(f"no {key!r}, or it is not a text")
    return Row(folder / fields["audio_filepath"], " ".join(fields["text"].split()), fields, place)


def select(rows: Sequence[Row], conditions: Iterable[Where]) -> list[Row]:
    """Return the rows for which all conditions hold.

    Raises:
        ValueError: a condition names a key that no row has, or leaves no row.
    """
    rows = list(rows)
    for condition in conditions:
        keys = sorted(set().union(*(row.fields for row in rows)))
        if condition.key not in keys:
            raise ValueError(f"--where {condition}: no row has the key {condition.key!r}; keys: {', '.join(keys)}")
        rows = [row for row in rows if condition.holds(row)]
        if not rows:
            raise ValueError(f"--where {condition}: no row is left")
    return rows


def limit_per_task(rows: Sequence[Row], task_by: str, limit: int, seed: int) -> list[Row]:
    """Return `limit` random rows of each task, or all where there are fewer, in the order of the manifest."""
    rows_of: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        rows_of.setdefault(str(row.fields.get(task_by)), []).append(i)
    rng = np.random.default_rng(seed)
    taken = sorted(i for task in sorted(rows_of) for i in rng.permutation(rows_of[task])[:limit])
    return [rows[i] for i in taken]
