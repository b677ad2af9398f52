"""What a backbone offers and what an edit is: all that adapters, loaders and other modalities may rely on.

A backbone is a stack of layers, each a list of residual steps x = x + w u. Each step has a name, its site; the site
"block" stands at the end of a layer, after its closing norm, with u = None (zero) before it. An edit is an adapter
bound to one batch. It may change u at its sites, and carries a value of its own from site to site up the depth of the
network: for HRA, the controller's state. The backward walks the same sites down again.
"""

from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from minihra.arrays import Array
from minihra.tree import Total, Tree, whole


class Training(NamedTuple):
    """What a step that trains the backbone adds to inference: batch statistics, and dropout on every branch."""

    keep: Array | None  # (L, steps, B, T, C)  bool; None = no dropout
    rate: float
    total: Total = whole

    def part(self, rows: Array, frames: int, total: Total, xp: ModuleType) -> "Training":
        """Return that of some rows of the batch, of `frames` frames at most, whose sums `total` adds to the others'.

        The masks are in `xp`, and the rows on the host.
        """
        rows = rows if xp is np else xp.asarray(rows)
        return Training(None if self.keep is None else self.keep[:, :, rows, :frames], self.rate, total)


class Context(NamedTuple):
    """What all layers share, made once for each batch."""

    valid: Array  # (B, T)
    positions: Any  # the table of blocks/self_attention.py
    training: Training | None
    kept: Any = None  # what layers whose weights nobody moves have computed from them alone: Projections, or nothing


class Edit(Protocol):
    """An adapter bound to one batch."""

    sites: frozenset[str]

    def forward(self, site: str, l: int, x: Array, u: Array | None, carry: Any) -> tuple[Array | None, Any, Any]:
        """Return the branch to add to x (B, T, C) in place of u, the next carry and the cache."""
        ...

    def backward(self, site: str, l: int, du: Array, dcarry: Any, cache: Any) -> tuple[Array, Array | None, Any, Tree]:
        """Return dx (what the edit itself read of x), du, dcarry and the gradient of the adapter's parameters."""
        ...


class Backbone(Protocol):
    """A stack of layers whose inside is open to edits."""

    p: Tree  # a NamedTuple of the parameters of embedding, layers and readout, in this order
    depth: int
    widths: tuple[int, ...]
    sites: tuple[str, ...]

    def embed(self, inputs: Array, lengths: Array, training: Training | None = None) -> tuple[Array, Context, Any]:
        """Return x (B, T, C) of the padded inputs, the context and the cache."""
        ...

    def embed_backward(self, dx: Array, cache: Any) -> Tree:
        """Return the gradient of the embedding's parameters. Not called when the backbone is frozen."""
        ...

    def layer_forward(
        self, l: int, x: Array, context: Context, edit: Edit | None, carry: Any, *, keep: bool = True
    ) -> tuple[Array, Any, Any]:
        """Return x after layer l, the carry and the cache; `keep=False` says that no backward follows."""
        ...

    def layer_backward(self, l: int, dx: Array, dcarry: Any, cache: Any) -> tuple[Array | None, Any, Tree, Tree]:
        """Return dx, dcarry, dp and dedit; dx is None where nothing further down is trained."""
        ...

    def readout_forward(self, x: Array, context: Context) -> tuple[Array, Any]:
        """Return the outputs y (B, T, V) and the cache."""
        ...

    def readout_backward(self, dy: Array, cache: Any) -> tuple[Array, Tree]:
        """Return dx and dp."""
        ...
