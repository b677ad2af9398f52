"""Parameter accounting: the known sizes, the agreement with what is really allocated, and that nothing is allocated."""

import tracemalloc

import pytest

from minihra.adapters.accounting import budgets, count_hra, count_residual_adapters
from minihra.adapters.hra import HRA
from minihra.adapters.parts import CELLS, HEADS

USM = {"width": 1536, "layers": 32, "backbone": 2_000_000_000}


def test_the_smallest_hra_of_the_paper_in_our_arithmetic() -> None:
    shared, per_task, total = count_hra(USM["width"], 256, 1, cell="indrnn")
    assert (shared, per_task, total) == (393_728, 394_752, 788_480)


def test_the_residual_adapters_of_the_paper() -> None:
    assert count_residual_adapters(USM["width"], USM["layers"]) == 6_440_960


def test_128_tasks() -> None:
    assert count_hra(USM["width"], 64, 128, cell="indrnn")[2] == 12_877_952


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("head", "bottleneck"), [("linear", None), ("ffn", None), ("ffn", 3)])
def test_counts_are_those_of_an_allocated_hra(cell: str, head: str, bottleneck: int | None) -> None:
    hra = HRA(6, 5, cell=cell, head=head, bottleneck=bottleneck)
    for tasks in range(3):
        counted = hra.count_parameters()
        assert count_hra(6, 5, tasks, cell=cell, head=head, bottleneck=bottleneck) == (
            counted.shared,
            counted.per_task,
            counted.total,
        )
        hra.add_task(f"task {tasks}")


def test_budgets_of_one_to_a_thousand_tasks() -> None:
    numbers = [1, 10, 100, 1000]
    shared, per_task, _ = count_hra(USM["width"], 64, 0, head="ffn", bottleneck=32)
    rows = budgets(**USM, state_size=64, tasks=numbers, head="ffn", bottleneck=32)
    assert [row.tasks for row in rows] == numbers
    for row in rows:
        assert row.hra == shared + row.tasks * per_task
        assert row.residual_adapters == row.tasks * 6_440_960
        assert row.fine_tuning == row.tasks * 2_000_000_000


def test_nothing_is_allocated() -> None:
    tracemalloc.start()
    try:
        for cell in CELLS:
            for head in HEADS:
                budgets(**USM, state_size=1024, tasks=range(1, 1001, 111), cell=cell, head=head)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000, "the smallest of these controllers has 12 MB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "lstm"}, "unknown cell 'lstm'; known: gru, indrnn, rnn, li_gru, none"),
        ({"head": "cubic"}, "unknown head 'cubic'; known: linear, ffn"),
        ({"bottleneck": 3}, "a linear head has no bottleneck"),
        ({"width": 0}, "at least 1"),
        ({"state_size": -1}, "at least 1"),
        ({"tasks": -1}, "at least 0"),
        ({"head": "ffn", "bottleneck": 0}, "at least 1"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_hra(**{"width": 4, "state_size": 4, "tasks": 1, **arguments})


def test_the_smallest_sizes_count() -> None:
    assert count_hra(1, 1, 0, cell="none") == (2, 2, 2)
    assert count_hra(1, 1, 3, cell="none") == (2, 2, 8)
