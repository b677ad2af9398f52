"""The forms by which PyTorch's tensors become ours, and their inverse."""

import pytest

from minihra.loaders import table


@pytest.mark.parametrize(
    ("form", "theirs", "ours", "dimensions"),
    [
        (table.same, (5,), (5,), 1),
        (table.transposed, (5, 3), (3, 5), 1),
        (table.pointwise, (5, 3, 1), (3, 5), 1),
        (table.pointwise, (5, 3, 1, 1), (3, 5), 2),
        (table.over_time, (5, 3, 7), (7, 3, 5), 1),
        (table.depthwise, (5, 1, 7), (7, 5), 1),
        (table.in_two_dimensions, (5, 2, 3, 4), (3, 4, 2, 5), 1),
        (table.depthwise_in_two_dimensions, (5, 1, 3, 4), (3, 4, 5), 1),
        (table.flattened_by_channel(2), (5, 6), (6, 5), 1),
    ],
)
def test_shapes_go_there_and_back(form: table.Form, theirs: tuple, ours: tuple, dimensions: int) -> None:
    assert table.shape_after(form, theirs) == ours
    assert table.shape_before(form, ours, dimensions) == theirs


def test_what_cannot_be_is_said() -> None:
    assert table.shape_after(table.transposed, ()) == ()
    assert table.shape_after(table.flattened_by_channel(2), ()) is None
    assert table.shape_after(table.depthwise, (5,)) is None
    with pytest.raises(ValueError, match="no one shape of a tensor becomes"):
        table.shape_before(table.columns(0, 3), (4, 5))
