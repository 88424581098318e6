"""The most memory used between two moments, of a GPU or of the process."""

import ctypes
import gc
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> int:
    """Forget the highest memory so far and return what is used now.

    On a CPU that is what is resident, of the heap and of mapped files; shards are read, not mapped. What the heap
    holds free goes back first, or else it would hide as much of what is taken afterwards.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak(device)


def peak(device: torch.device) -> int:
    """Return the most bytes of memory used since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
