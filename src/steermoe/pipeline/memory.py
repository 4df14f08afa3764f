"""Memory between steps: how much was used, and giving it back."""

from __future__ import annotations

import gc
import platform
import resource
from pathlib import Path

from steermoe.moe.freed_memory import give_back_freed_memory


def release_memory() -> None:
    """Give memory back to the system: models sit in reference cycles, and the allocator keeps what is freed."""
    gc.collect()
    give_back_freed_memory()


class PeakMemory:
    """Peak resident memory since it was made, where the system can tell; else of the whole process."""

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.resettable = True
        except OSError:
            self.resettable = False

    def read(self) -> int:
        """Bytes."""
        if self.resettable:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kilobytes if platform.system() == "Darwin" else kilobytes * 1024
