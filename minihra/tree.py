"""Trees: nested containers of arrays. Parameters, gradients and caches are trees.

A tree is a NamedTuple, a tuple, a dict, None (no leaf) or an array (a leaf). A gradient tree has the containers of its
parameter tree, but entries may be missing from a dict or be None: an absent gradient is exactly zero. Leaves have
dotted names, `layers.0.ffn1.up.W`, which are the keys of checkpoints, golden files and port tables. In the keys of a
dict, that is in the names of tasks, a dot is written %2E and a per cent sign %25.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from minihra.arrays import Array, array_module

Tree = Any
"""What annotations call a tree."""

Total = Callable[[Tree], Tree]
"""Adds up what each part of a batch has: threads compute a part each (minihra/threads.py)."""


def whole(tree: Tree) -> Tree:
    """Return the total of a batch that is in one part."""
    return tree


@dataclass(frozen=True)
class Shape:
    """A leaf that need not exist: what accounting counts, and what the tensors of a file are compared with."""

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def escape(key: str) -> str:
    """Return `key` in the form in which it stands in a dotted name."""
    return key.replace("%", "%25").replace(".", "%2E")


def unescape(part: str) -> str:
    """Undo `escape`."""
    return part.replace("%2E", ".").replace("%25", "%")


def children(tree: Tree) -> list[tuple[str, Tree]]:
    """Return the named children of a container; of a leaf or None, the empty list."""
    if isinstance(tree, dict):
        return [(escape(key), child) for key, child in tree.items()]
    if isinstance(tree, tuple):
        return list(zip(getattr(tree, "_fields", map(str, range(len(tree)))), tree, strict=True))
    return []


def rebuild(tree: Tree, new_children: list[Tree]) -> Tree:
    """Return a container like `tree` that holds `new_children`, in the order of `children(tree)`."""
    if isinstance(tree, dict):
        return dict(zip(tree, new_children, strict=True))
    return type(tree)(*new_children) if hasattr(tree, "_fields") else tuple(new_children)


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Yield (dotted name, array) for every leaf, depth first."""
    if isinstance(tree, (dict, tuple)):
        for name, child in children(tree):
            yield from leaves(child, f"{prefix}.{name}" if prefix else name)
    elif tree is not None:
        yield prefix, tree


def leaves_beside(tree: Tree, other: Tree, prefix: str = "") -> Iterator[tuple[str, Array, Array | None]]:
    """Yield (dotted name, array, array of `other` or None) for every leaf of `tree`, with what stands in its place in
    another tree, which may have much more.
    """
    if isinstance(tree, dict):
        its = other if isinstance(other, dict) else {}
        places = [(escape(key), child, its.get(key)) for key, child in tree.items()]
    elif isinstance(tree, tuple):
        its = dict(children(other)) if isinstance(other, tuple) else {}
        places = [(name, child, its.get(name)) for name, child in children(tree)]
    else:
        if tree is not None:
            yield prefix, tree, None if isinstance(other, (dict, tuple)) else other
        return
    for name, child, place in places:
        yield from leaves_beside(child, place, f"{prefix}.{name}" if prefix else name)


def map_leaves(function: Callable[..., Array], tree: Tree, *others: Tree) -> Tree:
    """Return a tree like `tree` whose leaves are `function(leaf, ...)`, with what `others` hold in the same places."""
    if isinstance(tree, dict):
        return {key: map_leaves(function, child, *(other[key] for other in others)) for key, child in tree.items()}
    if isinstance(tree, tuple):
        places = zip(*([child for _, child in children(t)] for t in (tree, *others)), strict=True)
        return rebuild(tree, [map_leaves(function, *place) for place in places])
    return None if tree is None else function(tree, *others)


def from_leaves(template: Tree, named: Mapping[str, Array], prefix: str = "") -> Tree:
    """Return a tree like `template` with the arrays of `named`; the opposite of `dict(leaves(tree))`.

    Raises:
        KeyError: a leaf of the template is missing from `named`.
    """
    if isinstance(template, (dict, tuple)):
        return rebuild(
            template,
            [from_leaves(child, named, f"{prefix}.{name}" if prefix else name) for name, child in children(template)],
        )
    return None if template is None else named[prefix]


def add(total: Tree, tree: Tree, plus: Callable[[Array, Array], Array] = operator.add) -> Tree:
    """Return the sum of two gradient trees. What is absent in one is taken from the other; neither is changed."""
    if total is None or tree is None:
        return tree if total is None else total
    if isinstance(tree, dict):
        return total | {key: add(total.get(key), child, plus) for key, child in tree.items()}
    if isinstance(tree, tuple):
        return rebuild(tree, [add(a, b, plus) for a, b in zip(total, tree, strict=True)])
    return plus(total, tree)


def count(tree: Tree) -> int:
    """Return the number of elements in all leaves."""
    return sum(leaf.size for _, leaf in leaves(tree))


def global_norm(tree: Tree) -> Array:
    """Return the Euclidean norm over all leaves, a 0-d array of their type; 0.0 for a tree without leaves."""
    squares = [(leaf * leaf).sum() for _, leaf in leaves(tree)]
    return array_module(squares[0]).sqrt(sum(squares)) if squares else 0.0
