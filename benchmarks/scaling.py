"""What collecting takes of real models, as our own planner says: the tables of docs/scaling.md.

Nothing is measured: checkpoints have the names, shapes and files of the originals and holes in place of numbers.
The configs' values are those of the models' public config.json files.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from benchmarks.synthetic import Spec, deepseek_config, deepseek_tensors, lay_out, qwen3_config, qwen3_tensors

from moe_compress.checkpoint.index import read_index
from moe_compress.collection.batches import Batch
from moe_compress.collection.estimate import Estimate, estimate
from moe_compress.collection.streamed import CheckpointFiles, StreamedModel
from moe_compress.operations.needs import PROCESS_BYTES, evaluating
from moe_compress.types import MoELayout

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
DEMONSTRATIONS, LENGTH, BATCH = 256, 2048, 16
EFFICIENCY = 0.3
"""Share of a GPU's peak that a layer's forward pass is taken to reach."""
BYTES_PER_SECOND = 3e9
"""Of one NVMe disk, or a fast network file system."""


@dataclass(frozen=True)
class Hardware:
    """A GPU by its data sheet.

    Attributes:
        name: what it is called.
        num_bytes: its memory.
        flops: floating-point operations per second in dense BF16.
    """

    name: str
    num_bytes: float
    flops: float


HARDWARE = (
    Hardware("RTX 4090, 24 GB", 24e9, 165e12),
    Hardware("A100, 80 GB", 80e9, 312e12),
    Hardware("H100, 80 GB", 80e9, 989e12),
    Hardware("H200, 141 GB", 141e9, 989e12),
)


@dataclass(frozen=True)
class Model:
    """A model's config, its tensors, and how many files they are in."""

    name: str
    config: dict[str, Any]
    num_files: int

    def tensors(self) -> Iterator[Spec]:
        """Yield its tensors."""
        make = qwen3_tensors if self.config["model_type"] == "qwen3_moe" else deepseek_tensors
        return make(self.config)

    @property
    def layout(self) -> MoELayout:
        """Its layers with routed experts."""
        dense = self.config.get("first_k_dense_replace", 0)
        layers = tuple(range(dense, self.config["num_hidden_layers"]))
        experts = self.config.get("num_experts") or self.config["n_routed_experts"]
        return MoELayout(layers, (experts,) * len(layers), self.config["num_experts_per_tok"])


def list_models() -> list[Model]:
    """Return the models of the page, the smallest first."""
    qwen3 = qwen3_config(48, 128) | {"vocab_size": 151936}
    wide = {
        "hidden_size": 4096,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "moe_intermediate_size": 1536,
        "intermediate_size": 12288,
    }
    deepseek = deepseek_config()
    kimi = {
        "model_type": "kimi_k2",
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "first_k_dense_replace": 1,
        "n_routed_experts": 384,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
        "vocab_size": 163840,
    }
    return [
        Model("Qwen3-30B-A3B", qwen3, 16),
        Model("Qwen3-235B-A22B", qwen3 | wide, 118),
        Model("DeepSeek-R1 (FP8)", deepseek, 163),
        Model("Kimi-K2 (FP8)", deepseek | kimi, 61),
    ]


@dataclass(frozen=True)
class Figures:
    """What a model takes: collected in wide and in narrow batches by one process, and its bytes in BF16."""

    wide: Estimate
    narrow: Estimate
    num_bytes: int


def estimate_model(model: Model, folder: Path) -> Figures:
    """Return what a model takes.

    Args:
        model: the model.
        folder: where its headers are laid out.
    """
    lay_out(folder, model.config, list(model.tensors()), model.num_files, is_sparse=True)
    index = read_index(folder)
    files = CheckpointFiles(index.folder, index.config, index.tensors)
    streamed = StreamedModel(files, torch.bfloat16, torch.device("cpu"))

    def take(size: int) -> Estimate:
        tokens_BS = torch.zeros(size, LENGTH, dtype=torch.long)
        batch = Batch(tokens_BS, torch.ones_like(tokens_BS), torch.arange(size))
        domains = {"one": [batch] * (DEMONSTRATIONS // size)}
        return estimate("streamed", streamed, domains, model.layout, folder)

    num_bytes = 2 * sum(torch.Size(shape).numel() for shape in files.plain.shapes.values())
    return Figures(take(BATCH), take(BATCH // 4), num_bytes)


def write_needs(estimates: dict[str, Figures]) -> str:
    """Return the table of what each model needs."""
    rows = [
        [
            "model",
            "read",
            "passes",
            f"device, batches of {BATCH}",
            f"of {BATCH // 4}",
            "of it two layers' weights",
            "host",
            "disk between layers",
            "80 GB GPUs to evaluate",
        ]
    ]
    for name, found in estimates.items():
        wide, narrow = found.wide, found.narrow
        gpus = evaluating(found.num_bytes, 80 * 10**9, 0).gpus
        host = PROCESS_BYTES + wide.host_bytes
        sizes = (wide.device_bytes, narrow.device_bytes, wide.weight_bytes, host, wide.disk_bytes)
        rows.append([name, _in_gb(wide.read_bytes), "1", *map(_in_gb, sizes), str(gpus)])
    return _as_table(rows)


def write_times(estimates: dict[str, Figures]) -> str:
    """Return the table of how long one GPU takes, and how many are worth having."""
    rows = [["model", "reading", *(hardware.name for hardware in HARDWARE)]]
    for name, found in estimates.items():
        reading = found.wide.read_bytes / BYTES_PER_SECOND
        rows.append([name, _in_minutes(reading), *(_say(found, hardware, reading) for hardware in HARDWARE)])
    return _as_table(rows)


def _say(found: Figures, hardware: Hardware, reading: float) -> str:
    fitting = [each for each in (found.wide, found.narrow) if each.device_bytes <= hardware.num_bytes]
    if not fitting:
        return "does not fit"
    computing = fitting[0].flops / (EFFICIENCY * hardware.flops)
    narrow = "" if fitting[0] is found.wide else f", batches of {BATCH // 4}"
    return f"{_in_minutes(max(computing, reading))} ({ceil(computing / reading)}){narrow}"


def _in_gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


def _in_minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def _as_table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def write_tables(models: list[Model]) -> tuple[str, str]:
    """Return what some models need, and how long they take."""
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as work:
        estimates = {model.name: estimate_model(model, Path(work) / model.name) for model in models}
    return write_needs(estimates), write_times(estimates)


def main() -> int:
    """Print the tables; return 1 if the page says otherwise."""
    tables = write_tables(list_models())
    print("\n\n".join(tables))
    page = PAGE.read_text()
    return int(any(table not in page for table in tables))


if __name__ == "__main__":
    sys.exit(main())
