"""A tuning in a process of its own that is killed once a checkpoint is on disk."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from tests.tuning.conftest import make_settings, run


def die_after(checkpoint):
    """Kill this process, as the kernel would, once a checkpoint is there."""
    while not (checkpoint / "trainer_state.json").exists():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, work, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    threading.Thread(target=die_after, args=(work / f"checkpoint-{step}",), daemon=True).start()
    run(folder, work, make_settings(kind="lora", steps=12))
