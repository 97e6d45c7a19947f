"""Seconds of each step: wall-clock time on a CPU, CUDA events on a GPU, which avoid synchronization."""

import resource
import time

import torch


class Clock:
    """Marks the ends of steps; the first mark is the start."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device != "cpu"
        self.marks: list = []

    def mark(self) -> None:
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds between consecutive marks."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if not self.on_gpu:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]

    def results(self, fvu: list, l0: torch.Tensor) -> dict[str, object]:
        """Result that a side prints: seconds and FVU of each step, final L0, and peak memory."""
        values = [float(each) for each in fvu]
        return {"seconds": self.seconds(), "fvu": values, "l0": float(l0), "peak": self.peak_gigabytes()}

    def peak_gigabytes(self) -> float:
        """Peak memory of torch on the GPU, or of this process on a CPU."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
