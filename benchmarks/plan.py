"""How long planning a DeepSeek-V3 takes, how much memory, and whether the planned sizes are right to the byte.

The checkpoint has the names, shapes and files of the original, about 91 thousand tensors in 163 files, with holes
in place of 688 GB of numbers.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.synthetic import Spec, deepseek_config, deepseek_tensors, lay_out, plan_balanced_half
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.jobs import CheckpointRewrite
