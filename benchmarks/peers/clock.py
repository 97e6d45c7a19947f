"""Seconds of steps, and peak memory of a process. Without a GPU, torch is not imported."""

import time
from pathlib import Path


def peak_memory() -> int:
    """Peak memory of this process on Linux, in bytes.

    `resource.getrusage` would count that of the process that started this one, whose memory it had before exec.
    """
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


class Clock:
    """Marks the ends of steps; the first mark is the start. Wall-clock time on a CPU; CUDA events on a GPU, which avoid
    synchronization."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device != "cpu"
        self.marks: list = []

    def mark(self) -> None:
        if self.on_gpu:
            import torch

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
        import torch

        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]

    def results(self, fvu: list, l0) -> dict[str, object]:
        """Result that a side prints: seconds and FVU of each step, final L0, and peak memory."""
        values = [float(each) for each in fvu]
        return {"seconds": self.seconds(), "fvu": values, "l0": float(l0), "peak": self.peak_gigabytes()}

    def peak_gigabytes(self) -> float:
        """Peak memory of torch on the GPU, or of this process on a CPU."""
        if self.on_gpu:
            import torch

            return torch.cuda.max_memory_allocated() / 1e9
        return peak_memory() / 1e9
