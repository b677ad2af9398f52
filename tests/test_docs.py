"""What the documents show runs, and what they point to exists."""

import re
import runpy
from pathlib import Path

import pytest

from minihra import layers, ops

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{n}")
    for page in PAGES
    for n, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Names in code type that look like a path of the project, in a page or in one of the folders that it is about."""
    named = re.findall(r"`((?:[\w.]+/)*\w+\.(?:py|md|ipynb|safetensors|json))`", page.read_text("utf-8"))
    folders = [ROOT, *(ROOT / folder for folder in ("minihra", "minihra/layers", "tests", "tests/golden", "docs"))]
    theirs = {"config.json", "model.safetensors", "model.safetensors.index.json", "vocab.json", "tokenizer.json"}
    theirs |= {"preprocessor_config.json", "processor_config.json"}  # in the folder of an open checkpoint
    assert [n for n in named if n not in theirs and not any((folder / n).exists() for folder in folders)] == []


@pytest.mark.parametrize("name", ["depth", "digits"])
def test_figure_is_of_the_script(name: str, tmp_path: Path) -> None:
    """The SVG in the repository has the words and numbers that the script writes: it was not left behind."""
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    runpy.run_path(str(ROOT / f"docs/figures/draw_{name}.py"))["main"](str(tmp_path / "drawn.svg"))

    def comments(path: Path) -> list[str]:
        return re.findall(r"<!-- (.*?) -->", path.read_text("utf-8"))

    drawn = comments(tmp_path / "drawn.svg")
    assert drawn
    assert drawn == comments(ROOT / f"docs/figures/{name}.svg")


def test_every_layer_file_is_on_the_switchboard() -> None:
    files = {path.stem for path in Path(layers.__file__).parent.glob("*.py")} - {"__init__"}
    imported = set(re.findall(r"^from minihra\.layers\.(\w+) import", Path(ops.__file__).read_text("utf-8"), re.M))
    assert files == imported
