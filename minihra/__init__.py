"""Hierarchical Recurrent Adapters (Munkhdalai et al. 2024, arXiv 2403.19709) without autograd."""

from pathlib import Path as _Path

__version__ = "0.1.0"

_here = _Path(__file__).resolve().parent
if not (_here / "kernels").is_dir():  # a checkout whose symbolic link git could not make: kernels/ lies beside minihra/
    __path__.append(str(_here.parent))
