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
    """A recorded step: `launch` runs it again on the current stream, and `outputs` are where its results then lie.

    It keeps the step, and with it the arrays that the step reads: a graph goes on reading there, whoever they are of.
    """

    def __init__(self, graph: Any, step: Callable[[], Any], outputs: Any) -> None:
        self.launch, self.outputs, self._step = graph.launch, outputs, step


class Recorder:
    """Records steps that run one after another. They share memory, which is theirs alone and never given back: CuPy
    would give what seems free to others when memory runs out, and a graph goes on writing there.
    """

    recorders: list["Recorder"] = []  # noqa: RUF012  of the whole process

    def __init__(self) -> None:
        import cupy

        self._cupy, self._held = cupy, []
        self._pool, self._stream = cupy.cuda.MemoryPool(self._keep), cupy.cuda.Stream(non_blocking=True)
        Recorder.recorders.append(self)

    def _keep(self, size: int) -> Any:
        self._held.append(self._cupy.cuda.Memory(size))
        return self._cupy.cuda.MemoryPointer(self._held[-1], 0)

    def run(self, step: Callable[[], Any]) -> Any:
        """Run a step in the memory of recordings, and return what it gives. It compiles what is new to the step.

        Raises:
            MemoryError: it has no room beside what else there is.
        """
        self._cupy.cuda.get_current_stream().synchronize()  # what the inputs wait for
        self._cupy.get_default_memory_pool().free_all_blocks()  # of the same step, as it ran before
        with self._cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            outputs = step()
            self._stream.synchronize()
        return outputs

    def record(self, step: Callable[[], Any]) -> Captured:
        """Record a step that has run; nothing is computed.

        Raises:
            RuntimeError: the step did what cannot be recorded.
            MemoryError: it has no room beside what else there is.
        """
        with self._cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            self._stream.begin_capture()
            try:
                outputs = step()
            except BaseException:
                with suppress(RuntimeError):  # a recording that was broken off is no graph
                    self._stream.end_capture()
                raise
            return Captured(self._stream.end_capture(), step, outputs)


def bytes_held() -> int:
    """Return the bytes that all recorded steps of the process hold."""
    return sum(memory.size for recorder in Recorder.recorders for memory in recorder._held)
