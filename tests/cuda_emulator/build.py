"""From the text of a .cu file to a library that runs its kernels on the CPU: g++, and a cache on disk."""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SOURCES = ("runtime.cpp", "warps.cpp", "checks.cpp")
HEADERS = ("emulator.h", "language.h", "runtime.h")
FLAGS = (
    "-std=c++20", "-g1", "-w", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique",  # two modules share nothing
    "-fno-strict-aliasing", "-ffp-contract=off", "-fcf-protection=none", f"-I{HERE}",
)  # fmt: skip
CHECKED_FLAGS = ("-O1", "-fsanitize=thread", "-fno-tree-loop-im")  # no read before the loop that asks for it
PLAIN_FLAGS = ("-O2", "-fno-tree-slp-vectorize")  # g++ 12 thinks an address aligned before a kernel has asked for it
OLDEST = 12  # of g++

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
KERNEL = re.compile(
    r"__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)"
)
DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s*)?([\w\s]+?)\s+(\w+)\s*\[\s*\]\s*;"
)


class EmulatorError(RuntimeError):
    """What is wrong with a kernel, or with its text."""


class KernelHead(NamedTuple):
    """What the text tells of a kernel."""

    name: str
    parameters: tuple[str, ...]


class Build(NamedTuple):
    """A compiled text."""

    loaded: ctypes.CDLL
    path: Path
    heads: tuple[KernelHead, ...]


@cache
def available() -> str | None:
    """Why nothing can be emulated here, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the emulator of CUDA needs Linux on x86-64"
    if shutil.which("g++") is None:
        return "the emulator of CUDA needs g++"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.partition(".")[0] or 0) < OLDEST:
        return f"the emulator of CUDA needs g++ {OLDEST} or newer, and this is {version}"
    return None


def without_comments(text: str) -> str:
    """The text with blanks for its comments, so that every character stays at its place."""
    return COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def kernels_in(text: str) -> tuple[KernelHead, ...]:
    """The kernels of a text without comments."""
    return tuple(
        KernelHead(name, tuple(re.findall(r"(\w+)\s*(?:,|$)", parameters))) for name, parameters in KERNEL.findall(text)
    )


def translated(text: str) -> str:
    """The text as g++ takes it: shared arrays know their kernel, and its names are its own. Lines stay lines."""
    text = without_comments(text)
    heads = kernels_in(text)

    def pointer(found: re.Match) -> str:
        element, name = found.groups()
        lines = "\n" * found[0].count("\n")
        return f"{element}* const {name} = reinterpret_cast<{element}*>(emulator::dynamic_shared);{lines}"

    def of_kernel(found: re.Match) -> str:
        before = text[: found.start()]
        kernel = KERNEL.match(text, before.rfind("__global__")) if "__global__" in before else None
        if kernel is None or before.rfind("__device__") > kernel.start():
            line = before.count("\n") + 1
            raise EmulatorError(f"kernel.cu, line {line}: a shared array belongs into a kernel")
        return f"EMULATOR_SHARED({kernel[1]})"

    text = DYNAMIC_SHARED.sub(pointer, text)
    text = re.sub(r"\b__shared__\b", of_kernel, text)
    ends = "".join(f"EMULATOR_KERNEL({head.name})\n" for head in heads)
    return f'#include "emulator.h"\nnamespace {{\n#line 1 "kernel.cu"\n{text}\n}}\n{ends}'


def cache_folder() -> Path:
    """Where what was compiled is kept; of this user only."""
    folder = Path(tempfile.gettempdir()) / f"minihra-cuda-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def run_compiler(arguments: Sequence[object], folder: str) -> None:
    """Run g++ in a folder; an EmulatorError with its message if it refuses."""
    done = subprocess.run(["g++", *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EmulatorError(f"g++ does not take the text:\n{done.stderr}")


def kept(name: str, make: Callable[[str], str]) -> Path:
    """The file of that name in the cache, made aside if it is not there yet, so that nobody sees half of it."""
    path = cache_folder() / name
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=path.parent) as folder:
            os.replace(Path(folder) / make(folder), path)
    return path


def own_object(file: str) -> Path:
    """A file of the emulator, compiled; it looks at no access, so all builds have the same."""

    def make(folder: str) -> str:
        run_compiler(["-c", *FLAGS, "-O2", HERE / file, "-o", "own.o"], folder)
        return "own.o"

    return kept(f"{key_of(file)}.o", make)


def key_of(*parts: object) -> str:
    """A name for what is made of the parts and of the emulator's own text."""
    own = [(HERE / name).read_text() for name in (*SOURCES, *HEADERS, "build.py")]
    return hashlib.sha256(repr((parts, own)).encode()).hexdigest()[:24]


@cache
def build(text: str, definitions: tuple[str, ...], checked: bool) -> Build:
    """The library of a text, compiled once for all processes."""
    if (reason := available()) is not None:
        raise EmulatorError(reason)
    source = translated(text)
    flags = (*FLAGS, *(CHECKED_FLAGS if checked else PLAIN_FLAGS), *definitions)

    def make(folder: str) -> str:
        first, *others = map(own_object, SOURCES)
        (Path(folder) / "kernel.cu").write_text(source)
        run_compiler(["-c", *flags, "-x", "c++", "kernel.cu", "-o", "kernel.o"], folder)
        run_compiler(["-shared", first, "kernel.o", *others, "-o", "module.so"], folder)  # a guard at each end
        return "module.so"

    path = kept(f"{key_of(source, flags)}.so", make)
    return Build(ctypes.CDLL(str(path)), path, kernels_in(without_comments(text)))


def line_at(path: Path, site: int) -> int:
    """The line of kernel.cu from which the machine code before `site` comes, or 0."""
    if shutil.which("addr2line") is None:
        return 0
    arguments = ["addr2line", "-i", "-e", str(path), hex(site - 1)]
    frames = subprocess.run(arguments, capture_output=True, text=True, check=False).stdout
    found = re.search(r"kernel\.cu:(\d+)", frames)
    return int(found[1]) if found else 0
