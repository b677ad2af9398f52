"""The Conformer from residual steps. A file reads like the figure in its paper."""
