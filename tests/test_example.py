"""The example runs the whole way on a handful of recordings."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FSDD = ROOT.parent / "shared" / "data" / "fsdd"
EXAMPLE = runpy.run_path(str(ROOT / "examples" / "adapt_digits.py"))


def test_adapt_digits(tmp_path, capsys):
    if not FSDD.is_dir():
        pytest.skip("needs the recordings of ../shared/data/fsdd")
    rows = [json.loads(line) for line in (FSDD / "manifest.jsonl").read_text().splitlines()]
    few: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        few.setdefault((row["speaker"], row["split"]), []).append(row)
    lines = []
    for (_, split), group in few.items():
        for row in group[:: len(group) // 6][:6] if split == "train" else group[:: len(group) // 3][:3]:
            lines.append(json.dumps(row | {"audio_filepath": str(FSDD / row["audio_filepath"])}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    rates = EXAMPLE["main"]([str(tmp_path), "--epochs", "3", "2"])
    assert list(rates) == ["george", "lucas", "yweweler", "mean"]
    assert all(np.isfinite(rate) for pair in rates.values() for rate in pair)
    printed = capsys.readouterr().out
    assert "HRA: 21,920 parameters" in printed
    assert len(printed.splitlines()) == 9


def test_a_missing_folder_is_one_line_and_exit_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        EXAMPLE["main"]([str(tmp_path)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("manifest.jsonl: no such file")
