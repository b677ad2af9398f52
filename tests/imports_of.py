"""Reads which modules a Python source text imports, also inside its functions, without running it."""

import ast
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Import(NamedTuple):
    """`module`, or `name` out of it, is imported on `line`."""

    module: str
    name: str | None
    line: int


def house() -> dict[str, Path]:
    """Return every module of the library by its dotted name; `kernels/` is installed as minihra.kernels."""
    files = {}
    for folder, package in (("minihra", "minihra"), ("kernels", "minihra.kernels")):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "minihra" and parts[0] == "kernels":
                continue  # the symbolic link to kernels/
            files[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return files


def imports(source: str, module: str, is_package: bool, modules: Collection[str]) -> list[Import]:
    """Return what `source`, the text of `module`, imports; `from x import y` is the module x.y if `modules` has it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:  # relative: one level is the package itself
                package = module.split(".") if is_package else module.split(".")[:-1]
                start = ".".join([*package[: len(package) - node.level + 1], *([start] if start else [])])
            for alias in node.names:
                inner = f"{start}.{alias.name}"
                is_module = inner in modules
                found.append(Import(inner if is_module else start, None if is_module else alias.name, node.lineno))
    return found


def imports_of_house() -> dict[str, list[Import]]:
    """Return the imports of every module of the library."""
    files = house()
    return {
        module: imports(file.read_text(encoding="utf-8"), module, file.name == "__init__.py", files)
        for module, file in files.items()
    }
