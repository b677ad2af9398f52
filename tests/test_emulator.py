"""The emulator of CUDA: what is right passes in every order, and every planted fault is found.

So that the tests of kernels, which run on it, can be believed.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda_emulator import build
from tests.cuda_emulator.emulator import (
    EmulatorError,
    KernelError,
    available,
    compile_module,
    emulated,
    known,
    uninitialised,
)
from tests.imports_of import ROOT

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

TEXT = (Path(build.__file__).parent / "faults.cu").read_text()
ORDERS = [(order, checked) for checked in (False, True) for order in (0, 1, 2)]


@pytest.fixture(params=ORDERS, ids=lambda way: f"order {way[0]}{', checked' * way[1]}")
def in_every_order(request: pytest.FixtureRequest) -> Iterator[None]:
    order, checked = request.param
    with emulated(order=order, seed=3, checked=checked):
        yield


@pytest.fixture(params=[False, True], ids=["plain", "checked"])
def in_every_build(request: pytest.FixtureRequest) -> Iterator[bool]:
    with emulated(checked=request.param):
        yield request.param


@pytest.fixture
def checked() -> Iterator[None]:
    with emulated(checked=True):
        yield


def kernel(name: str, dtype: type = np.float32) -> Callable[..., None]:
    return compile_module(TEXT, [f"-DREAL={'float' if dtype is np.float32 else 'double'}"]).get_function(name)


def numbers(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def empty(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return uninitialised(np.empty(shape, dtype))


def faults(run: Callable, *args: Any, **kwargs: Any) -> dict[str, str]:
    """What a launch is blamed for: the kinds, each with its first message."""
    with pytest.raises(KernelError) as raised:
        run(*args, **kwargs)
    return {message.kind: str(message) for message in reversed(raised.value.messages)}


# ---- what is right


@pytest.mark.usefixtures("in_every_order")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reductions(dtype: type) -> None:
    x, y = numbers(5, 100, dtype=dtype), empty(5, 100, dtype=dtype)
    for threads in (32, 96, 256):
        kernel("centre_rows", dtype)((5,), (threads,), (x, y, np.int32(100)))
        wanted = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        np.testing.assert_allclose(y, wanted, atol=1e-5 if dtype is np.float32 else 1e-13)


@pytest.mark.usefixtures("in_every_order")
def test_grid_stride_and_a_partial_warp() -> None:
    x, y = numbers(103), empty(103)
    kernel("double_all")((2,), (32,), (x, y, np.int32(103)))
    assert (y == 2 * x).all()
    kernel("largest_of_three")((1,), (10,), (x[:10], y[:10]))
    np.testing.assert_array_equal(y[:3], x[:3].max())
    np.testing.assert_array_equal(y[3:10], x[3:10])


@pytest.mark.usefixtures("in_every_order")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiled_product(dtype: type) -> None:
    a, b, c = numbers(19, 21, dtype=dtype), numbers(21, 10, dtype=dtype), empty(19, 10, dtype=dtype)
    kernel("product", dtype)((2, 3), (8, 8), (a, b, c, *map(np.int32, (19, 10, 21, 0))))
    np.testing.assert_allclose(c, a @ b, atol=1e-5)


@pytest.mark.usefixtures("in_every_order")
def test_talk_through_shared_memory() -> None:
    x, y, right = numbers(64), empty(64), np.int32(0)
    kernel("reverse")((1,), (64,), (x, y, right), 64 * 4)
    assert (y == x[::-1]).all()
    kernel("swap_lanes")((1,), (64,), (x, y, right))
    assert (y == x[np.arange(64) ^ 1] + x[np.arange(64) & 32]).all()
    kernel("halves")((1,), (32,), (x, y, right))
    assert (y[:32] == x[np.arange(32) ^ 15] + 2).all()
    kernel("shuffle_is_no_barrier")((1,), (32,), (y, right))
    assert (y[:32] == 3).all()
    kernel("fill_half")((1,), (64,), (y, right))
    kernel("barrier")((1,), (64,), (y, right))
    assert (y == 1).all()
    kernel("shuffles")((1,), (64,), (y, right))
    assert (y == np.maximum(np.arange(64) - 1, np.arange(64) & 32)).all()
    kernel("shuffles")((1,), (64,), (y, np.int32(5)))


@pytest.mark.usefixtures("in_every_order")
def test_neighbouring_bytes_are_different_places() -> None:
    y, is_odd = empty(64, dtype=np.uint8), empty(64, dtype=np.uint8).view(bool)
    kernel("bytes")((1,), (64,), (y, is_odd))
    assert (y == np.arange(64)[::-1]).all() and (is_odd == np.arange(64) % 2).all()


@pytest.mark.usefixtures("in_every_order")
def test_atomic_operations() -> None:
    x = np.arange(100, dtype=np.int32)
    sums, entries, total = np.zeros(2, np.int32), np.zeros(1, np.uint64), np.zeros(1, np.float32)
    kernel("count")((3,), (32,), (x, sums, entries, total, np.int32(100), np.int32(0)))
    assert (*sums, *entries, *total) == (4950, 99, 100, 4950)


@pytest.mark.usefixtures("in_every_order")
def test_vectors_of_four() -> None:
    x, y = numbers(32, 4), empty(32, 4)
    kernel("shift")((1,), (32,), (x, y, np.int32(32)))
    np.testing.assert_array_equal(y, x + np.arange(1, 5, dtype=np.float32))


@pytest.mark.usefixtures("in_every_order")
def test_arrays_behind_a_table_of_addresses() -> None:
    x, y = numbers(32), empty(32)
    table = np.array([x.ctypes.data, y.ctypes.data], np.uint64)
    with known(x, y):
        kernel("through_table")((1,), (32,), (table, np.int32(32)))
    assert (y == -x).all()


STRUCT = """
struct Table { float* y[3]; int size[3]; };
extern "C" __global__ void fill(Table table, float value) {
    for (int i = threadIdx.x; i < table.size[blockIdx.x]; i += blockDim.x) table.y[blockIdx.x][i] = value;
}
"""


@pytest.mark.usefixtures("in_every_order")
def test_a_struct_by_value() -> None:
    layout = np.dtype({"names": ["y", "size"], "formats": [(np.uint64, 3), (np.int32, 3)]}, align=True)
    fill, arrays = compile_module(STRUCT).get_function("fill"), [empty(n) for n in (5, 0, 40)]
    table = np.zeros(1, layout)
    table["y"], table["size"] = [y.ctypes.data for y in arrays], [y.size for y in arrays]
    with known(*arrays):
        fill((3,), (32,), (table, np.float32(7)))
    assert all((y == 7).all() for y in arrays)
    for wrong in (np.zeros(2, layout), np.zeros(1, np.float32), np.zeros(8, np.uint64), np.float32(1)):
        with pytest.raises(TypeError, match=r"argument 0 \(table\) of fill .* not one struct of 40 bytes"):
            fill((3,), (32,), (wrong, np.float32(7)))


def test_orders_change_what_a_racy_kernel_gives() -> None:
    y, found = np.zeros(1, np.int32), set()
    for order, seed in ((0, 0), (1, 0), (2, 0), (2, 1), (2, 2)):
        with emulated(order=order, seed=seed):
            kernel("last_one")((3,), (7,), (y,))
        found.add(int(y[0]))
    assert {0, 20} < found


# ---- what is wrong


@pytest.mark.usefixtures("in_every_build")
@pytest.mark.parametrize(
    ("name", "wrong", "threads", "kind", "text"),
    [
        ("barrier", 1, 32, "barrier", "__syncthreads, which thread (5,0,0) never reaches"),
        ("barrier", 2, 64, "barrier", "while thread (32,0,0) waits at that of line"),
        ("shuffles", 1, 32, "warp", "lane 16 in the mask of a shuffle or vote, but thread (16,0,0) has ended"),
        ("shuffles", 2, 32, "deadlock", "waits for lane 7 of its warp, but thread (7,0,0) waits elsewhere"),
        ("shuffles", 3, 32, "warp", "does not name its own lane"),
        ("shuffles", 4, 32, "warp", "takes a value from lane 16, which takes no part"),
    ],
)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_threads_that_do_not_meet(
    name: str, wrong: int, threads: int, kind: str, text: str, order: int, in_every_build: bool
) -> None:
    with emulated(order=order, checked=in_every_build):
        found = faults(kernel(name), (1,), (threads,), (empty(threads), np.int32(wrong)))
    assert text in found[kind]


@pytest.mark.usefixtures("in_every_build")
def test_a_lane_that_is_not_there() -> None:
    found = faults(kernel("centre_rows"), (1,), (10,), (numbers(10), empty(10), np.int32(10)))
    assert "takes a value from lane 1" in found["warp"]


@pytest.mark.usefixtures("in_every_build")
@pytest.mark.parametrize(
    ("grid", "block", "shared", "text"),
    [
        ((1,), (1025,), 0, "a block of (1025, 1, 1) is not between"),
        ((1,), (64, 32), 0, "a block of 2048 threads is larger than 1024"),
        ((1,), (1, 1, 65), 0, "is not between"),
        ((0,), (1,), 0, "is not between"),
        ((1, 65536), (1,), 0, "is not between"),
        ((1,), (32,), 48 * 1024 + 1, "bytes of shared memory are more than 49152"),
    ],
)
def test_a_launch_that_no_gpu_takes(grid: tuple, block: tuple, shared: int, text: str) -> None:
    assert text in faults(kernel("double_all"), grid, block, (numbers(3), empty(3), np.int32(3)), shared)["launch"]


@pytest.mark.usefixtures("in_every_build")
def test_arrays_in_a_kernel_count_as_shared_memory() -> None:
    """Those of this kernel only."""
    y = empty(64)
    most = 48 * 1024 - 64 * 4
    kernel("fill_half")((1,), (64,), (y, np.int32(0)), most)
    assert "launch" in faults(kernel("fill_half"), (1,), (64,), (y, np.int32(0)), most + 4)


@pytest.mark.parametrize("wrong", [1, 2])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_missing_barrier_in_a_tiled_product(order: int, wrong: int) -> None:
    a, b = numbers(16, 16), numbers(16, 16)
    with emulated(order=order, checked=False):
        c = empty(16, 16)
        kernel("product")((2, 2), (8, 8), (a, b, c, *map(np.int32, (16, 16, 16, wrong))))
        assert not np.allclose(c, a @ b, atol=1e-3)
    with emulated(order=order, checked=True):
        found = faults(kernel("product"), (2, 2), (8, 8), (a, b, empty(16, 16), *map(np.int32, (16, 16, 16, wrong))))
    assert "of shared memory that thread" in found["race"] and "without a barrier between" in found["race"]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "wrong", "threads", "shared"),
    [("reverse", 1, 64, 256), ("swap_lanes", 1, 64, 0), ("swap_lanes", 2, 64, 0), ("halves", 1, 32, 0)],
)
def test_missing_barrier(name: str, wrong: int, threads: int, shared: int, order: int) -> None:
    with emulated(order=order, checked=True):
        found = faults(kernel(name), (1,), (threads,), (numbers(64), empty(64), np.int32(wrong)), shared)
    assert "without a barrier between" in found["race"]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("blocks", "threads", "step"), [(2, 1, 1), (3, 1, 1), (1, 2, 1), (1, 3, 1), (1, 33, 1), (1, 96, 1), (1, 33, 32)]
)
def test_one_writes_what_many_read(blocks: int, threads: int, step: int, order: int) -> None:
    with emulated(order=order, checked=True):
        assert "race" in faults(kernel("refresh"), (blocks,), (threads,), (numbers(1), empty(96), np.int32(step)))
        kernel("refresh")((1,), (1,), (numbers(1), empty(1), np.int32(1)))


def test_a_shuffle_is_no_barrier(checked: None) -> None:
    assert "race" in faults(kernel("shuffle_is_no_barrier"), (1,), (32,), (empty(32), np.int32(1)))


def test_shared_memory_that_nothing_wrote() -> None:
    y, wrong = empty(64), np.int32(1)
    kernel("fill_half")((2,), (64,), (y, wrong))
    assert (y[:32] == 1).all() and np.isnan(y[32:]).all()
    with emulated(checked=True):
        found = faults(kernel("fill_half"), (1,), (64,), (y, wrong))
        assert faults(kernel("fill_half"), (2,), (64,), (y, np.int32(2)))["uninitialised"].count("block (1,0,0)")
    line = next(i for i, text in enumerate(TEXT.splitlines(), 1) if "y[threadIdx.x] = values[threadIdx.x];" in text)
    where = f"block (0,0,0), thread (32,0,0), line {line}"
    assert list(found.values()) == [
        f"uninitialised: {where}: reads byte 128 of shared memory, which nothing has written"
    ]


def test_global_memory_that_nothing_wrote(checked: None) -> None:
    double, n = kernel("double_all"), np.int32(32)
    x, y = empty(32), empty(32)
    found = faults(double, (1,), (32,), (x, y, n))
    assert "reads element 0 of argument 0 (x) of double_all, which nothing has written" in found["uninitialised"]
    double((1,), (32,), (numbers(32), x, np.int32(31)))
    assert "element 31 of argument 0 (x)" in faults(double, (1,), (32,), (x, y, n))["uninitialised"]
    double((1,), (1,), (numbers(1), x[31:], np.int32(1)))
    double((1,), (32,), (x, y, n))
    with emulated(checked=False):
        double((1,), (32,), (numbers(32), z := empty(32), n))
    double((1,), (32,), (z, y, n))


def test_blocks_that_write_one_address(checked: None) -> None:
    x, sums = np.ones(96, np.int32), np.zeros(2, np.int32)
    more = np.zeros(1, np.uint64), np.zeros(1, np.float32), np.int32(96), np.int32(1)
    found = faults(kernel("count"), (3,), (32,), (x, sums, *more))
    assert "of argument 1 (sums) of count that thread (0,0,0) of block (0,0,0)" in found["race"]
    assert "without an order between the two blocks" in found["race"]
    found = faults(kernel("last_one"), (2,), (1,), (sums,))
    assert "block (1,0,0)" in found["race"] and "writes element 0 of argument 0 (y)" in found["race"]
    assert "race" in faults(kernel("last_one"), (1,), (2,), (sums,))


def test_memory_that_is_not_there(checked: None) -> None:
    double, x = kernel("double_all"), numbers(64)
    found = faults(double, (1,), (32,), (x[:31].copy(), empty(32), np.int32(32)))
    assert "thread (31,0,0)" in found["memory"]
    assert "reads 4 bytes outside every known array, just behind the end of argument 0 (x)" in found["memory"]
    found = faults(double, (1,), (32,), (x, np.zeros(30, np.float32), np.int32(32)))
    assert "writes 4 bytes outside every known array, just behind the end of argument 1 (y)" in found["memory"]
    assert "at a null pointer" in faults(double, (1,), (1,), (None, x, np.int32(1)))["memory"]
    double((1,), (1,), (0, None, np.int32(0)))
    table = np.array([x.ctypes.data, x.ctypes.data], np.uint64)
    assert "memory" in faults(kernel("through_table"), (1,), (32,), (table, np.int32(32)))


def test_shared_memory_that_is_not_there(checked: None) -> None:
    y = empty(16)
    kernel("beyond_shared")((1,), (16,), (y, np.int32(0)))
    for i in (1, 100, -1):
        found = faults(kernel("beyond_shared"), (1,), (16,), (y, np.int32(i)))
        assert "writes 4 bytes outside every known array" in found["memory"]
    assert "memory" in faults(kernel("reverse"), (1,), (64,), (numbers(64), empty(64), np.int32(0)), 63 * 4)


@pytest.mark.usefixtures("in_every_build")
def test_vectors_of_four_at_a_bad_address() -> None:
    x = np.zeros(36, np.float32)
    x = x[(-x.ctypes.data // 4) % 4 :]
    for at_x, at_y, verb in ((1, 0, "reads"), (0, 2, "writes")):
        args = x[at_x:][:4], x[16 + at_y :][:4], np.int32(1)
        found = faults(kernel("shift"), (1,), (1,), args)
        assert f"{verb} 16 bytes at an address that is not a multiple of 16" in found["alignment"]


def test_arguments_that_do_not_fit() -> None:
    double, x, y, n = kernel("double_all"), numbers(3), empty(3), np.int32(3)
    read_only = y.copy()
    read_only.flags.writeable = False
    double((1,), (3,), (read_only, y, n))
    for args, text in (
        ((x, y), "double_all takes 3 arguments, not 2"),
        ((x.astype(np.float64), y, n), "argument 0 (x) of double_all is an array of float64, and not one of float32"),
        ((x, y, np.int64(3)), "argument 2 (n) of double_all is np.int64(3)"),
        ((x, y, 3), "argument 2 (n) of double_all is 3 of type int, and not of type int32"),
        ((x, 5, n), "argument 1 (y) of double_all is 5 of type int, and not an array"),
        ((numbers(3, 3).T, y, n), "argument 0 (x) of double_all is an array that is not contiguous"),
        ((x, read_only, n), "argument 1 (y) of double_all is an array that may not be written"),
    ):
        with pytest.raises(TypeError) as raised:
            double((1,), (3,), args)
        assert text in str(raised.value)


# ---- the module


def test_both_builds_in_one_process() -> None:
    """Each keeps to itself, whatever the settings of the moment."""
    plain, looks = (compile_module(TEXT, ["-DREAL=float"], checked=checked) for checked in (False, True))
    y = np.zeros(1, np.int32)
    for _ in range(2):
        plain.get_function("last_one")((2,), (1,), (y,))
        assert "race" in faults(looks.get_function("last_one"), (2,), (1,), (y,))


def test_a_text_that_does_not_compile() -> None:
    with pytest.raises(EmulatorError, match=r"kernel\.cu:3:\d+: error"):
        compile_module('/* a\n comment */\nextern "C" __global__ void f(int* x) { y = 1; }\n', checked=False)
    with pytest.raises(EmulatorError, match="line 2: a shared array belongs into a kernel"):
        compile_module("\n__device__ void f() { __shared__ int x[3]; }\n", checked=False)
    with pytest.raises(EmulatorError, match="no kernel g among barrier"):
        compile_module('extern "C" __global__ void barrier() {}').get_function("g")


def test_compiled_once_even_by_two_processes(tmp_path: Path) -> None:
    script = """
from tests.cuda_emulator.emulator import compile_module
compile_module('extern "C" __global__ void f(int* x) { *x = 1; }', checked=True)
"""
    folder = tmp_path / build.cache_folder().name
    shutil.copytree(build.cache_folder(), folder, ignore=shutil.ignore_patterns("*.so", "unfinished-*"))

    def process() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)})

    def kept() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    assert [one.wait() for one in [process(), process()]] == [0, 0]
    before = kept()
    assert sum(name.endswith(".so") for name in before) == 1
    assert not any(name.startswith("unfinished-") for name in before)
    assert process().wait() == 0
    assert kept() == before


def test_why_nothing_can_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    build.available.cache_clear()
    try:
        assert available() == "the emulator of CUDA needs g++"
        with pytest.raises(EmulatorError, match=r"needs g\+\+"):
            compile_module('extern "C" __global__ void nothing() {}', checked=False)
    finally:
        build.available.cache_clear()
