"""Kedro dataset classes: how each value that passes between stages is saved and loaded."""

from moe_compress.datasets.checkpoint import CheckpointDataset
from moe_compress.datasets.compatibility import CompatibilityDataset
from moe_compress.datasets.evaluation import EvaluationDataset, ProbesDataset, SpeedsDataset
from moe_compress.datasets.folder import FolderDataset
from moe_compress.datasets.keyed import RunKeysDataset
from moe_compress.datasets.plan import NewestPlansDataset, PlanDataset
from moe_compress.datasets.rewritten import KeyedCheckpointDataset
from moe_compress.datasets.rows import RowsDataset
from moe_compress.datasets.statistics import StatisticsDataset, StatisticsShardsDataset
from moe_compress.datasets.sweep import SweepDataset, read_sweep
from moe_compress.datasets.tuning import TuningDataset

__all__ = [
    "CheckpointDataset",
    "CompatibilityDataset",
    "EvaluationDataset",
    "FolderDataset",
    "KeyedCheckpointDataset",
    "NewestPlansDataset",
    "PlanDataset",
    "ProbesDataset",
    "RowsDataset",
    "RunKeysDataset",
    "SpeedsDataset",
    "StatisticsDataset",
    "StatisticsShardsDataset",
    "SweepDataset",
    "TuningDataset",
    "read_sweep",
]
