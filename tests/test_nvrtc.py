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


def log_of(nvrtc: ctypes.CDLL, text: str, *options: str) -> tuple[bool, str]:
    """Whether a text compiles, and what the compiler says."""
    program, size, all_options = ctypes.c_void_p(), ctypes.c_size_t(), ("-std=c++17", *options)
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    given = (ctypes.c_char_p * len(all_options))(*(option.encode() for option in all_options))
    failed = nvrtc.nvrtcCompileProgram(program, len(all_options), given)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return not failed, log.value.decode().strip()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile(source: str, architecture: int, nvrtc: ctypes.CDLL) -> None:
    """To machine code, without a warning."""
    assert log_of(nvrtc, Source(source).text, f"-arch=sm_{architecture}", "-DREAL=float") == (True, "")


@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile_for_double(source: str, nvrtc: ctypes.CDLL) -> None:
    """To PTX, which takes half of the time."""
    assert log_of(nvrtc, Source(source).text, "-arch=compute_80", "-DREAL=double") == (True, "")


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_compiles_by_itself(source: str, nvrtc: ctypes.CDLL) -> None:
    """As `nvcc -ptx FILE` compiles it, with the header that it includes."""
    folder = ROOT / "kernels" / "cuda"
    assert log_of(nvrtc, (folder / source).read_text(), "-arch=compute_80", f"-I{folder}") == (True, "")


def test_what_does_not_compile_is_seen(nvrtc: ctypes.CDLL) -> None:
    for option in ("-arch=sm_80", "-arch=compute_80"):
        compiles, log = log_of(nvrtc, Source("norms.cu").text.replace("sqrt(", "sqroot("), option, "-DREAL=float")
        assert not compiles and "sqroot" in log and "norms.cu" in log
