"""Trees: names of leaves, sums with absent entries, and what comes back from names."""

from typing import NamedTuple

import numpy as np
import pytest

from minihra.layers.linear import LinearParams
from minihra.model import add_into
from minihra.tree import add, count, escape, from_leaves, global_norm, leaves, leaves_beside, map_leaves, unescape


class Pair(NamedTuple):
    W: object
    b: object


NAMES = ["a", "a.b", "50%", "%2E", "%252E", "..", "%.%", "two words", "Жук", "line\nbreak"]


@pytest.mark.parametrize("name", NAMES)
def test_escape_hides_dots_and_comes_back(name: str) -> None:
    assert "." not in escape(name)
    assert unescape(escape(name)) == name


def test_escaped_names_stay_different() -> None:
    assert len({escape(name) for name in NAMES}) == len(NAMES)


def tree_of(*values: float) -> dict:
    """A tree with every kind of container; its four leaves hold `values`."""
    a, b, c, d = (np.full(n + 1, value) for n, value in enumerate(values))
    return {"x.y": Pair(a, None), "z": (b, (c, {}), Pair(None, d))}


def test_leaves_have_dotted_names_and_come_back() -> None:
    tree = tree_of(1, 2, 3, 4)
    named = dict(leaves(tree))
    assert list(named) == ["x%2Ey.W", "z.0", "z.1.0", "z.2.b"]
    again = from_leaves(tree, named)
    assert type(again["x.y"]) is Pair and again["x.y"].b is None and again["z"][1][1] == {}
    assert all(leaf is named[name] for name, leaf in leaves(again))
    assert list(dict(leaves(tree["z"], "p"))) == ["p.0", "p.1.0", "p.2.b"]
    assert list(leaves(None)) == []


def test_leaves_meet_what_stands_in_their_places() -> None:
    """By the keys of dicts and the places of tuples; None where there is nothing, or no leaf."""
    one, two, three = np.ones(1), np.ones(2), np.ones(3)
    tree = {"a.b": (one, {"x": two}), "c": {"y": three}, "d": None}
    other = {"e": one, "a.b": (two, {"x": three, "z": one}), "c": one, "d": two}
    assert [*leaves_beside(tree, other)] == [("a%2Eb.0", one, two), ("a%2Eb.1.x", two, three), ("c.y", three, None)]
    assert [*leaves_beside({"c": one}, {"c": {"y": three}})] == [("c", one, None)]
    assert [*leaves_beside((one, two), (three,))] == [("0", one, three), ("1", two, None)]
    assert [*leaves_beside(LinearParams(one, two), (two, three))] == [("W", one, None), ("b", two, None)]


def test_a_missing_leaf_is_named() -> None:
    named = dict(leaves(tree_of(1, 2, 3, 4)))
    del named["z.1.0"]
    with pytest.raises(KeyError, match=r"z\.1\.0"):
        from_leaves(tree_of(0, 0, 0, 0), named)


def test_map_leaves_meets_the_same_places() -> None:
    total = map_leaves(lambda x, y: x + 10 * y, tree_of(1, 2, 3, 4), tree_of(5, 6, 7, 8))
    assert [leaf[0] for _, leaf in leaves(total)] == [51, 62, 73, 84]
    with pytest.raises(ValueError):
        map_leaves(lambda x, y: x, (np.ones(1), np.ones(1)), (np.ones(1),))


def test_map_leaves_meets_the_entries_of_a_dict_by_their_keys() -> None:
    ours, theirs = {"ann": np.array([1.0]), "bob": np.array([2.0])}, {"bob": np.array([2.0]), "ann": np.array([1.0])}
    assert map_leaves(lambda x, y: x - y, ours, theirs) == {"ann": 0.0, "bob": 0.0}


def test_add_takes_what_is_absent_from_the_other() -> None:
    one, two = np.array([1.0]), np.array([2.0])
    total = add({"a": Pair(one, None), "b": None}, {"a": Pair(two, two), "b": one, "c": two})
    assert (total["a"].W, total["a"].b, total["b"], total["c"]) == (3.0, 2.0, 1.0, 2.0)
    assert add(None, None) is None
    assert add(one, None) is one and add(None, one) is one
    assert (one, two) == (1.0, 2.0), "an argument was changed"


def test_add_changes_no_dict_of_its_arguments() -> None:
    left, right = {"a": np.ones(2)}, {"b": np.ones(2)}
    assert list(add(left, right)) == ["a", "b"]
    assert list(left) == ["a"] and list(right) == ["b"]


def test_add_into_adds_as_add_does_in_the_arrays_of_the_total() -> None:
    one, two = np.array([1.0]), np.array([2.0])
    tree = {"a": Pair(two, two), "b": one, "c": two}
    wanted = add({"a": Pair(one, None), "b": None}, tree)
    own = one.copy()
    total = add_into({"a": Pair(own, None), "b": None}, tree)
    assert {name: leaf.tolist() for name, leaf in leaves(total)} == {
        name: leaf.tolist() for name, leaf in leaves(wanted)
    }
    assert total["a"].W is own
    assert (one, two) == (1.0, 2.0), "what was added was changed"
    assert add_into(None, None) is None


def test_count_and_norm() -> None:
    tree = tree_of(1, 2, 3, 4)
    assert count(tree) == 1 + 2 + 3 + 4
    assert global_norm(tree) == pytest.approx((1 + 2 * 4 + 3 * 9 + 4 * 16) ** 0.5, rel=1e-15)
    assert global_norm(map_leaves(np.float32, tree)).dtype == np.float32
    assert count(None) == 0 and global_norm({"a": None}) == 0.0
