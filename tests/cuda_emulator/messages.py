"""What the emulator found, as sentences."""

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.cuda_emulator.memory import Named

FAR = 1 << 20  # bytes from an array at which an address has nothing to do with it


class Index(ctypes.Structure):
    """Of a thread in its block, of a block in its grid; a size of either."""

    _fields_ = [(name, ctypes.c_uint) for name in "xyz"]

    def __str__(self) -> str:
        return f"({self.x},{self.y},{self.z})"

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.x, self.y, self.z


class Report(ctypes.Structure):
    """As struct Report in runtime.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("fault", "use", "other_use", "space")),
        *((name, Index) for name in ("block", "thread", "other_block", "other_thread")),
        *((name, ctypes.c_int) for name in ("has_other", "lane", "line", "other_line")),
        ("size", ctypes.c_uint),
        ("address", ctypes.c_uint64),
        ("site", ctypes.c_uint64),
    ]


class Sentence(NamedTuple):
    """Of one struct Fault."""

    kind: str
    text: str


SENTENCES = (  # in the order of enum Fault in runtime.h
    Sentence("race", "{uses} {place} that {other} {other_uses} without {between}"),
    Sentence("uninitialised", "{uses} {place}, which nothing has written"),
    Sentence("memory", "{uses} {size} bytes outside every known array{nearest}"),
    Sentence("alignment", "{uses} {size} bytes at an address that is not a multiple of {size}{in_place}"),
    Sentence("barrier", "waits at __syncthreads, which {other} never reaches: it has ended"),
    Sentence("barrier", "waits at __syncthreads, while {other} waits at that of line {other_line}"),
    Sentence("warp", "calls a function of its warp with a mask that does not name its own lane"),
    Sentence("warp", "names lane {lane} in the mask of a shuffle or vote, but {other} has ended without it"),
    Sentence("deadlock", "waits for lane {lane} of its warp, but {other} waits elsewhere, at line {other_line}"),
    Sentence("warp", "takes a value from lane {lane}, which takes no part in the shuffle"),
)
USES = ("reads", "writes", "changes atomically")  # in the order of enum Use in emulator.h
FIXED_SHARED, DYNAMIC_SHARED, GLOBAL = 1, 2, 3  # of enum Space in runtime.h


class Message(NamedTuple):
    """One thing that is wrong."""

    kind: str
    text: str
    block: tuple[int, int, int] | None = None
    thread: tuple[int, int, int] | None = None
    line: int = 0

    def __str__(self) -> str:
        if self.block is None:
            return f"{self.kind}: {self.text}"
        at = f", line {self.line}" if self.line else ""
        block, thread = (str(place).replace(" ", "") for place in (self.block, self.thread))
        return f"{self.kind}: block {block}, thread {thread}{at}: {self.text}"


def place_of(report: Report, arrays: Sequence[Named]) -> str:
    """Which memory a report is about."""
    if report.space == FIXED_SHARED:
        return f"byte {report.address} of shared memory"
    if report.space == DYNAMIC_SHARED:
        return f"byte {report.address} of dynamic shared memory"
    for named in arrays:
        if named.begin <= report.address < named.end:
            return f"element {(report.address - named.begin) // named.array.itemsize} of {named.name}"
    return "memory"


def nearest_to(address: int, arrays: Sequence[Named]) -> str:
    """Which array an address just misses."""
    if address < FAR:
        return ", at a null pointer"
    missed = [(address - named.end, "behind the end", named.name) for named in arrays if address >= named.end]
    missed += [(named.begin - address, "before the beginning", named.name) for named in arrays if address < named.begin]
    distance, side, name = min(missed, default=(FAR, "", ""))
    how_far = f"{distance} bytes" if distance else "just"
    return f", {how_far} {side} of {name}" if distance < FAR else ""


def between(report: Report) -> str:
    """What is missing between two uses of memory."""
    if report.has_other and report.other_block.numbers != report.block.numbers:
        return "an order between the two blocks"
    return "a barrier between"


def other_of(report: Report) -> str:
    """The other thread."""
    if not report.has_other:
        return "another thread"
    if report.other_block.numbers != report.block.numbers:
        return f"thread {report.other_thread} of block {report.other_block}"
    return f"thread {report.other_thread}"


def message(report: Report, arrays: Sequence[Named], line_at: Callable[[int], int]) -> Message:
    """A report as a message; line_at finds the line of a place in the machine code."""
    sentence, place = SENTENCES[report.fault], place_of(report, arrays)
    text = sentence.text.format(
        uses=USES[report.use],
        other_uses=USES[report.other_use],
        place=place,
        in_place=f", in {place}" if report.space else "",
        nearest=nearest_to(report.address, arrays),
        other=other_of(report),
        between=between(report),
        size=report.size,
        lane=report.lane,
        other_line=report.other_line,
    )
    line = report.line or (line_at(report.site) if report.site else 0)
    return Message(sentence.kind, text, report.block.numbers, report.thread.numbers, line)
