"""The reference layers: one file is one family of equations, each backward under its forward, in plain array code."""
