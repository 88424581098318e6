"""`kedro compress run` that kills itself as a stage begins: python -m tests.operations.killed_run STAGE DOMAIN."""

from __future__ import annotations

import os
import signal
import sys

from kedro.framework.cli.cli import main
from kedro.framework.hooks import hook_impl

from moe_compress import settings


class KillAt:
    """Kills the run when this stage is about to begin, however busy the machine is."""

    def __init__(self, stage):
        self.stage = stage

    @hook_impl
    def before_node_run(self, node):
        if node.name.endswith(f".{self.stage}"):
            os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _, stage, domain = sys.argv
    settings.HOOKS = (*settings.HOOKS, KillAt(stage))
    sys.argv = ["kedro", "compress", "run", domain]
    main()
