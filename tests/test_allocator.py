"""Freed arrays are reused by the next ones, where the C library can be told so."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy as np
from minihra.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else "")
x = np.ones((200, 4096), np.float32)
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3): y = (x * 2) + (x * 3)
before = faults()
for _ in range(20): y = (x * 2) + (x * 3)
print(faults() - before)
"""


def test_no_page_faults_for_what_was_freed() -> None:
    def run(how: str) -> tuple[str, int]:
        process = subprocess.run([sys.executable, "-c", COUNT, how], check=True, capture_output=True, text=True)
        said, faults = process.stdout.splitlines()
        return said, int(faults)

    said, kept = run("keep")
    if said != "True":
        pytest.skip("this C library cannot be told to keep freed memory")
    _, given_back = run("leave")
    assert kept < 200 < given_back
