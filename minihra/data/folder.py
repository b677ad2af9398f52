"""Files that people bring and take away: folders of recordings with texts beside them, and JSONL."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minihra.data.faults import Faults

AUDIO = (".wav", ".flac", ".ogg", ".mp3")
"""The suffixes of recordings."""


def rows_of_folder(folder: Path, faults: Faults) -> list[dict[str, str]]:
    """Return a manifest's row for each recording that has a text: name.wav beside name.txt; a subfolder is a speaker.

    Recordings without a text, or with one that is not UTF-8, are added to `faults`.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    rows = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO):
        text = path.with_suffix(".txt")
        if not text.is_file():
            faults.add(f"{path}: no {text.name} beside it says what is said in it")
            continue
        try:
            words = text.read_text(encoding="utf-8-sig").split()  # -sig: Windows may write a mark before it
        except ValueError as error:
            faults.add(f"{text}: not a text in UTF-8 ({error})")
            continue
        inside = path.relative_to(folder)
        row = {"audio_filepath": inside.as_posix(), "text": " ".join(words)}
        if len(inside.parts) > 1:
            row["speaker"] = inside.parts[0]
        rows.append(row)
    return rows


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file, under a temporary name that is then renamed.

    Raises:
        OSError: the folder does not exist, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)
