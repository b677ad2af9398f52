"""Every kernel compiles for the GPUs that CuPy supports, with NVIDIA's compiler from pip; no driver is needed."""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import pytest

from minihra.kernels.cuda.launch import Source
from tests.imports_of import ROOT

ARCHITECTURES = (75, 80, 86, 89, 90)
SOURCES = sorted(path.name for path in (ROOT / "kernels" / "cuda").glob("*.cu"))


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    spec = find_spec("nvidia")
    libraries = [
        library
        for folder in (spec.submodule_search_locations if spec else ())
        for library in Path(folder).rglob("libnvrtc.so.*")
        if "alt" not in library.name
    ]
    if not libraries:
        pytest.skip("the kernels are compiled with NVRTC: pip install 'minihra[kernels]' (no GPU is needed)")
    return ctypes.CDLL(str(libraries[0]))


def compiled(nvrtc: ctypes.CDLL, text: str, options: list[str]) -> tuple[int, str]:
    """The size of the machine code, 0 where it does not compile, and what the compiler says."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    )
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if not failed:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return 0 if failed else size.value, log.value.decode()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile(source: str, architecture: int, nvrtc: ctypes.CDLL) -> None:
    for real in ["float", "double"][: 1 + (architecture == ARCHITECTURES[-1])]:
        options = [f"-arch=sm_{architecture}", "-std=c++17", f"-DREAL={real}"]
        size, log = compiled(nvrtc, Source(source).text, options)
        assert size > 0 and not log.strip("\0\n"), log


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_compiles_by_itself(source: str, nvrtc: ctypes.CDLL) -> None:
    """As `nvcc -cubin FILE` compiles it, with the header that it includes."""
    folder = ROOT / "kernels" / "cuda"
    size, log = compiled(nvrtc, (folder / source).read_text(), ["-arch=sm_80", "-std=c++17", f"-I{folder}"])
    assert size > 0 and not log.strip("\0\n"), log


def test_what_does_not_compile_is_seen(nvrtc: ctypes.CDLL) -> None:
    size, log = compiled(nvrtc, Source("norms.cu").text.replace("sqrt(", "sqroot("), ["-arch=sm_80", "-DREAL=float"])
    assert size == 0 and "sqroot" in log and "norms.cu" in log
