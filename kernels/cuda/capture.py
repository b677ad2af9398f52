"""A step as a CUDA graph: what it launches is recorded once, and then started again as a whole.

Starting a kernel takes the CPU some microseconds, and a step of a small model is a thousand kernels of a few
microseconds each: the GPU would wait. A graph starts them all at once. It reads and writes the arrays that it was
recorded with, so that who replays it first writes new inputs into them. The step must upload nothing and wait for
nothing.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Captured:
    """A recorded step: `launch` runs it again, and `outputs` are the arrays in which its results then lie."""

    def __init__(self, step: Callable[[], Any], pool: Any) -> None:
        """Run the step twice, the second time to record it; its memory is of `pool`, which nothing else may use."""
        import cupy

        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.get_current_stream().synchronize()  # what the inputs wait for is not in the graph
        with cupy.cuda.using_allocator(pool.malloc), stream:
            step()  # compiles what is new, and fills the pool
            stream.synchronize()
            stream.begin_capture()
            try:
                self.outputs = step()
            except BaseException:
                with suppress(RuntimeError):  # a recording that was broken off is no graph
                    stream.end_capture()
                raise
            self._graph = stream.end_capture()

    def launch(self) -> None:
        """Run the step again on the current stream."""
        self._graph.launch()


def new_pool() -> Any:
    """Return a pool for the memory of graphs that run one after another."""
    import cupy

    return cupy.cuda.MemoryPool()
