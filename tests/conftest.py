"""What several files of tests share: a backbone and an adapter, trained on made-up speech. Memory holds nonsense."""

import ctypes
import os
import sys

import pytest

from minihra.cli import main
from tests.tones import Bench, adapt, pretrain, write_corpus

M_PERTURB = -6  # malloc.h of glibc
LARGE, TINY = 0x55, 0xAA  # of such bytes float32 is 1.5e13 and -3.0e-13


def pytest_configure() -> None:
    """Fill memory that is freed with large numbers, and new memory with tiny ones; in every second process, where tests
    are shared by several, the other way round. Whoever reads what is not theirs, or not written yet, computes nonsense.

    Blocks of up to 1 kB only if glibc keeps no cache of them, as `make test` tells it before a process starts.
    """
    if sys.platform.startswith("linux"):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
        fill = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if fill is not None:
            fill(M_PERTURB, TINY if int(worker.removeprefix("gw")) % 2 else LARGE)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("corpus")
    made = Bench(folder, write_corpus(folder), folder / "backbone", folder / "adapter")
    assert main(pretrain(made.manifest, made.backbone, "--epochs", "60", "--valid", "split=test")) == 0
    assert main(adapt(made, made.adapter, "--steps", "150", "--state-size", "8")) == 0
    return made
