"""The house of the library: imports go down only, backends stay behind the switchboard, and layers are written one way.

These tests read source text. What they forbid is proved, on made-up modules, to be found.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest

from minihra.ops import PAIRS
from tests.imports_of import ROOT, Import, house, imports, imports_of_house

ROOMS = {
    "minihra": 0,  # the package itself imports nothing of its own
    "minihra.allocator": 0,
    "minihra.device": 0,
    "minihra.threads": 0,
    "minihra.places": 0,
    "minihra.arrays": 0,
    "minihra.tree": 0,
    "minihra.masks": 0,
    "minihra.gradcheck": 1,
    "minihra.layers": 1,
    "minihra.ops": 2,
    "minihra.blocks": 3,
    "minihra.kernels": 3,  # the twins of layers, and of some blocks
    "minihra.speech": 3,
    "minihra.data": 3,
    "minihra.adapters": 4,
    "minihra.cases": 4,
    "minihra.model": 5,
    "minihra.optim": 5,
    "minihra.train": 5,
    "minihra.checkpoint": 5,
    "minihra.recogniser": 5,
    "minihra.loaders": 5,
    "minihra.evaluate": 5,
    "minihra.parts": 5,
    "minihra.graphs": 5,
    "minihra.trainees": 5,
    "minihra.controls": 5,
    "minihra.open_cases": 4,
    "minihra.model_cases": 6,  # the inputs of the whole model need the model
    "minihra.report": 6,
    "minihra.config": 6,
    "minihra.checks": 6,
    "minihra.bench": 6,
    "minihra.bench_rows": 6,
    "minihra.bench_runs": 6,
    "minihra.bench_bandwidth": 6,
    "minihra.bench_side": 6,
    "minihra.bench_twins": 6,
    "minihra.bench_floor": 6,
    "minihra.ahead": 6,
    "minihra.demo": 6,
    "minihra.weightless": 6,
    "minihra.memory": 6,
    "minihra.inspection": 6,
    "minihra.commands": 6,
    "minihra.training_commands": 6,
    "minihra.cli": 6,
    "minihra.__main__": 6,
}
"""The room of each module; a package stands for all that is in it, the package minihra only for itself."""

BACKENDS = ("numba", "cupy", "minihra.kernels")
HEAVY = ("numba", "cupy", "torch", "matplotlib", "transformers", "tokenizers", "hama")
"""What nothing imports before it is asked to."""

House = dict[str, list[Import]]


def inside(module: str, packages: str | tuple[str, ...]) -> bool:
    packages = (packages,) if isinstance(packages, str) else packages
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def room(module: str) -> int | None:
    return ROOMS.get(".".join(module.split(".")[:2]))


def inner(imported: House) -> dict[str, set[str]]:
    """Which modules of the house a module imports."""
    return {module: {i.module for i in found if inside(i.module, "minihra")} for module, found in imported.items()}


def homeless(imported: House) -> list[str]:
    """The modules without a room."""
    return [module for module in imported if room(module) is None]


def goes_up(imported: House) -> list[str]:
    """The imports of a module in a higher room."""
    return [
        f"{module} (room {room(module)}) imports {other} (room {room(other)})"
        for module, others in inner(imported).items()
        for other in sorted(others)
        if room(module) is not None and room(other) is not None and room(other) > room(module)
    ]


def cycle(imported: House) -> list[str]:
    """One cycle of imports, or none."""
    graph, done = inner(imported), set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            if found := visit(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in graph if (found := visit(module, []))), [])


def names_a_backend(imported: House) -> list[str]:
    """Imports by which anything but the switchboard chooses a backend, or a block takes a pair from `layers`."""
    found = []
    for module, its_imports in imported.items():
        may_choose = inside(module, ("minihra.ops", "minihra.kernels"))
        built_on_pairs = inside(module, ("minihra.blocks", "minihra.adapters"))
        for i in its_imports:
            is_pair = i.name is None or i.name.endswith(("_forward", "_backward", "_update"))
            if inside(i.module, BACKENDS) and not may_choose:
                found.append(f"{module}:{i.line} imports {i.module}")
            if built_on_pairs and inside(i.module, "minihra.layers") and is_pair:
                found.append(f"{module}:{i.line} takes {i.name or 'everything'} from {i.module}")
    return found


def kernels_reach_out(imported: House) -> list[str]:
    """Imports of kernels beyond the arrays, the threads and their places, and the types and constants of layers and
    blocks.
    """
    return [
        f"{module}:{i.line} imports {i.module} {i.name or ''}"
        for module, its_imports in imported.items()
        if inside(module, "minihra.kernels")
        for i in its_imports
        if inside(i.module, "minihra")
        and not inside(i.module, ("minihra.arrays", "minihra.threads", "minihra.places", "minihra.kernels"))
        and not (inside(i.module, ("minihra.layers", "minihra.blocks")) and (i.name or "")[:1].isupper())
    ]


CHECKS = {check.__name__: check for check in (homeless, goes_up, cycle, names_a_backend, kernels_reach_out)}


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_is_in_order(check: str) -> None:
    assert CHECKS[check](imports_of_house()) == []


SPOILED = [  # (the check, what it must report, {module: its text})
    (homeless, "minihra.cellar", {"minihra.cellar": ""}),
    (goes_up, "minihra.layers.gru (room 1) imports minihra.ops", {"minihra.layers.gru": "import minihra.ops"}),
    (goes_up, "imports minihra.optim", {"minihra.blocks.conformer": "def f():\n    from minihra import optim"}),
    (goes_up, "imports minihra.adapters.hra", {"minihra.blocks.conformer": "from ..adapters import hra"}),
    (goes_up, "imports minihra.ops", {"minihra.gradcheck": "if True:\n    from minihra.ops import PAIRS"}),
    (goes_up, "imports minihra.model", {"minihra": "from .model import forward"}),
    (
        cycle,
        "minihra.layers.conv",
        {"minihra.layers.gru": "from . import conv", "minihra.layers.conv": "from .gru import gru_forward"},
    ),
    (cycle, "minihra.tree", {"minihra.tree": "import minihra.tree"}),
    (names_a_backend, "takes gru_forward", {"minihra.adapters.hra": "from minihra.layers.gru import gru_forward"}),
    (names_a_backend, "takes everything", {"minihra.blocks.conformer": "import minihra.layers.linear"}),
    (names_a_backend, "imports cupy", {"minihra.blocks.conformer": "def f():\n    import cupy as cp"}),
    (names_a_backend, "imports minihra.kernels", {"minihra.model": "from minihra.kernels import cpu"}),
    (kernels_reach_out, "minihra.tree", {"minihra.kernels.cpu": "from minihra.tree import add"}),
    (kernels_reach_out, "gru_forward", {"minihra.kernels.cpu": "from minihra.layers.gru import GRUCache, gru_forward"}),
]


@pytest.mark.parametrize(("check", "report", "texts"), SPOILED)
def test_a_spoiled_house_is_found_out(check: Callable, report: str, texts: dict[str, str]) -> None:
    files = house()
    modules = {*files, *texts}
    spoiled = {m: imports(text, m, m in files and files[m].name == "__init__.py", modules) for m, text in texts.items()}
    assert any(report in line for line in check(imports_of_house() | spoiled))


def test_the_page_shows_the_rooms_as_they_are() -> None:
    page, shown, number = (ROOT / "docs/convention.md").read_text(encoding="utf-8").partition("## A layer")[0], {}, 0
    for room_of_row, files in re.findall(r"^\| (\d?) ?\| (`.*?) \|", page, re.MULTILINE):
        number = int(room_of_row or number)
        for name in re.findall(r"`([\w/.]+)`", files):
            shown[f"minihra.{name.removesuffix('.py').rstrip('/')}"] = number
    elsewhere = {"minihra", "minihra.__main__", "minihra.kernels"}
    assert shown == {module: number for module, number in ROOMS.items() if module not in elsewhere}


def loaded_after(statements: str) -> list[str]:
    """Which heavy packages a fresh interpreter has loaded after `statements`."""
    code = f"import sys\n{statements}\nprint(*(m for m in {HEAVY} if m in sys.modules))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()


def test_importing_the_library_loads_no_backend() -> None:
    modules = [m for m in house() if not inside(m, ("minihra.kernels", "minihra.__main__"))]
    assert loaded_after("import minihra") == []
    assert loaded_after("\n".join(f"import {module}" for module in modules)) == []
    assert loaded_after("import numba") == ["numba"]


def test_the_packages_of_pyproject_are_those_of_the_tree() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {module for module, file in house().items() if file.name == "__init__.py"}
    folders = {module.rpartition(".")[0] for module, file in house().items() if file.name != "__init__.py"}
    assert sorted(setuptools["packages"]) == sorted(packages)
    assert folders <= packages, "a folder with modules, but without __init__.py"
    assert setuptools["package-dir"] == {"minihra": "minihra", "minihra.kernels": "kernels"}


REFERENCE = {
    module: file
    for module, file in house().items()
    if inside(module, ("minihra.layers", "minihra.blocks", "minihra.adapters"))
}
NO_PAIRS = {"branch_forward"}
"""Forwards whose backward is a table of the branches' own."""


class Function(NamedTuple):
    """A function at the top level of a module."""

    name: str
    lines: set[int]  # the numbers (n) in its comments


def functions(source: str) -> list[Function]:
    """The functions at the top level, in their order."""
    lines, found = source.splitlines(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            comments = [line.partition("  # ")[2] for line in lines[node.lineno - 1 : node.end_lineno]]
            found.append(Function(node.name, {int(n) for text in comments for n in re.findall(r"\((\d+)\)", text)}))
    return found


def misplaced_pairs(source: str) -> list[str]:
    """Forwards without their backward under them, and pairs that do not bear the same line numbers."""
    found, listed = [], functions(source)
    for function, following in pairwise([*listed, Function("", set())]):
        name, _, kind = function.name.rpartition("_")
        if kind != "forward" or function.name in NO_PAIRS:
            continue
        if following.name != f"{name}_backward":
            found.append(f"{function.name} has {following.name or 'nothing'} under it")
        elif function.lines != following.lines:
            found.append(f"{name}: forward lines {sorted(function.lines)}, backward {sorted(following.lines)}")
    return found


@pytest.mark.parametrize("module", REFERENCE)
def test_reference_files_are_short_and_hold_pairs(module: str) -> None:
    source = REFERENCE[module].read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250, "a file over 250 lines is two files"
    assert misplaced_pairs(source) == []


@pytest.mark.parametrize(
    ("source", "report"),
    [
        ("def a_forward():\n    pass\ndef b():\n    pass\ndef a_backward():\n    pass", "a_forward has b under it"),
        ("def a_forward():\n    pass", "a_forward has nothing under it"),
        ("def a_forward():\n    return 1  # (1) (2)\ndef a_backward():\n    pass  # (2)", "forward lines [1, 2]"),
    ],
)
def test_a_spoiled_pair_is_found_out(source: str, report: str) -> None:
    assert report in misplaced_pairs(source)[0]


def test_every_pair_of_the_layers_is_on_the_switchboard() -> None:
    written = {
        function.name
        for module, file in REFERENCE.items()
        if inside(module, "minihra.layers")
        for function in functions(file.read_text(encoding="utf-8"))
        if function.name.endswith(("_forward", "_backward"))
    }
    assert written == {function.__name__ for pair in PAIRS.values() for function in pair}
    assert all(
        (pair.forward.__name__, pair.backward.__name__) == (f"{name}_forward", f"{name}_backward")
        for name, pair in PAIRS.items()
    )


def let_go_too_soon(source: str) -> list[str]:
    """Arrays that compiled code makes itself and whose addresses it reads elsewhere than in a loop after that.

    Numba gives an array back after the last line that names it, whoever has its address; what a loop names, it keeps to
    the end of that loop.
    """
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        made: dict[str, int] = {}
        for node in ast.walk(function):
            for target, value in assigned(node):
                if comes_of(value, {"np", *made}):
                    made[target] = node.lineno
        loops = [node for node in ast.walk(function) if isinstance(node, ast.For)]
        for node in ast.walk(function):
            if (array := read_by_address(node)) is not None:
                name = next((n.id for n in ast.walk(array) if isinstance(n, ast.Name) and n.id in made), None)
                around = [loop for loop in loops if any(inside is node for inside in ast.walk(loop))]
                if name and not any(loop.lineno > made[name] for loop in around):
                    found.append(f"{function.name}: {name}")
    return found


def read_by_address(node: ast.AST) -> ast.expr | None:
    """The array whose address a piece of code takes, as `matrix` does."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "matrix":
        return node.args[0]
    return node.value if isinstance(node, ast.Attribute) and node.attr == "ctypes" else None


def assigned(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """The names that a statement assigns to, each with its value."""
    if not isinstance(node, ast.Assign):
        return []
    target, value = node.targets[0], node.value
    targets = target.elts if isinstance(target, ast.Tuple) else [target]
    both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
    values = value.elts if both else [value] * len(targets)
    return [(name.id, of) for name, of in zip(targets, values, strict=True) if isinstance(name, ast.Name)]


def comes_of(value: ast.expr, names: set[str]) -> bool:
    """Whether a value is a part, an attribute or what a method returns of one of the names."""
    while isinstance(value, (ast.Attribute, ast.Subscript, ast.Call)):
        value = value.func if isinstance(value, ast.Call) else value.value
    return isinstance(value, ast.Name) and value.id in names


TWINS_ON_THE_CPU = {module: file for module, file in house().items() if inside(module, "minihra.kernels.cpu")}


@pytest.mark.parametrize("module", TWINS_ON_THE_CPU)
def test_compiled_code_keeps_the_arrays_whose_addresses_it_reads(module: str) -> None:
    assert let_go_too_soon(TWINS_ON_THE_CPU[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(n):\n    a, m = np.zeros(n), n\n    its = matrix(a)\n    for i in range(n):\n        use(its)",
        "def f(n):\n    a = np.zeros((2, n))\n    b = a[0]\n    use(matrix(b))",
        "def f(n):\n    a, b = np.zeros((2, n))\n    its = matrix(b)\n    for i in range(n):\n        use(its)",
        "def f(n):\n    a = np.zeros(n)\n    its = np.intp(a.ctypes.data)\n    for i in range(n):\n        use(its)",
        "def f(n):\n    for i in range(n):\n        a = np.empty(n)\n        use(after(matrix(a.reshape(-1)), i))",
    ],
)
def test_an_array_that_is_let_go_is_found_out(source: str) -> None:
    assert len(let_go_too_soon(source)) == 1
