"""The example runs the whole way on a handful of recordings."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
FSDD = ROOT.parent / "shared" / "data" / "fsdd"
TONE = '{"audio_filepath": "{folder}/tone.wav", "text": "one", "speaker": "jackson", "split": "train"}'
COMPLETE = [
    TONE.replace("jackson", speaker)
    .replace("train", split)
    .replace('"one"', '"zwei"' if speaker == "lucas" else '"one"')
    for speaker in ("jackson", "nicolas", "theo", "george", "lucas", "yweweler")
    for split in ("train", "test")
]
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


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "No such file or directory: "),
        (["{"], "line 1: Expecting property name"),
        (['{"audio_filepath": "a.flac"}'], "line 1: {folder}/a.flac: no such file"),
        (['{"audio_filepath": "{folder}/tone.wav"}'], "line 1: no field 'text'"),
        (['{"audio_filepath": "{folder}/manifest.jsonl"}'], "manifest.jsonl: not a recording that can be read"),
        ([TONE], "no test recording of jackson"),
        (COMPLETE, "character 1 of 'zwei', 'z', is not in 'eno'"),
    ],
    ids=["no manifest", "no JSON", "no file", "no text", "no recording", "no speaker", "no letter"],
)
def test_a_mistake_is_one_line_and_exit_status_2(lines, message, tmp_path, capsys):
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(4000.0)), 8000)
    if lines is not None:
        (tmp_path / "manifest.jsonl").write_text("\n".join(lines).replace("{folder}", str(tmp_path)))
    with pytest.raises(SystemExit) as exit_:
        EXAMPLE["main"]([str(tmp_path)])
    assert exit_.value.code == 2
    assert message.replace("{folder}", str(tmp_path)) in capsys.readouterr().err.splitlines()[-1]
