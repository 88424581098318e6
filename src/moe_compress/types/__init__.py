"""The values that pass between stages; frozen, and valid once built.

Shape letters used in names throughout the package (`gate_weights_TK` has shape `[T, K]`):

    T  tokens of a batch, padding removed      K  experts the router picks per token (top_k)
    L  layers with routed experts              D  hidden size
    E  routed experts of a layer               B, S  sequences of a batch, positions of a sequence
    P  parts of a domain's demonstrations   N  tokens of a sample
"""

from moe_compress.types.agreement import Agreement
from moe_compress.types.background import Likeness, MergeTrees, PlanBackground
from moe_compress.types.checkpoint import CheckpointReference, Encoding, TensorInfo, TensorMap, TensorRole
from moe_compress.types.compatibility import EngineVerdict, Reason, Served, Verdict
from moe_compress.types.evaluation import Demonstrations, EvaluationResult, ItemResult, TaskComparison, WrittenText
from moe_compress.types.gates import GateOutcome, GateReport, Measurements
from moe_compress.types.identity import FloatArray, Provenance, as_json, digest_of
from moe_compress.types.layout import MoELayout, layout_from_json
from moe_compress.types.parts import CURVE, StatisticsParts, add_in_order, assign_parts, part_ends
from moe_compress.types.plan import (
    Budget,
    CompressionPlan,
    ExpertGroup,
    RouterGroups,
    RouterNoise,
    iterate_layers,
    pruning_groups,
)
from moe_compress.types.probes import (
    UNTIMED,
    LayerProbe,
    ProbeResult,
    Speed,
    Throughput,
    noise_of,
    throughput_from_json,
)
from moe_compress.types.sample import ExpertProducts, LayerSample, Reduction, RouterTrial
from moe_compress.types.size import ModelSize, SizeUnit
from moe_compress.types.statistics import ExpertStatistics, RoutingBatch
from moe_compress.types.sweep import SweepCheck, SweepEntry, SweepResult, choose_smallest
from moe_compress.types.trials import MIXED, LeftOut, Measurement, Trial, TrialKey
from moe_compress.types.tuning import TuningCourse, TuningRecord, TuningStep

__all__ = [
    "CURVE",
    "MIXED",
    "UNTIMED",
    "Agreement",
    "Budget",
    "CheckpointReference",
    "CompressionPlan",
    "Demonstrations",
    "Encoding",
    "EngineVerdict",
    "EvaluationResult",
    "ExpertGroup",
    "ExpertProducts",
    "ExpertStatistics",
    "FloatArray",
    "GateOutcome",
    "GateReport",
    "ItemResult",
    "LayerProbe",
    "LayerSample",
    "LeftOut",
    "Likeness",
    "Measurement",
    "Measurements",
    "MergeTrees",
    "MoELayout",
    "ModelSize",
    "PlanBackground",
    "ProbeResult",
    "Provenance",
    "Reason",
    "Reduction",
    "RouterGroups",
    "RouterNoise",
    "RouterTrial",
    "RoutingBatch",
    "Served",
    "SizeUnit",
    "Speed",
    "StatisticsParts",
    "SweepCheck",
    "SweepEntry",
    "SweepResult",
    "TaskComparison",
    "TensorInfo",
    "TensorMap",
    "TensorRole",
    "Throughput",
    "Trial",
    "TrialKey",
    "TuningCourse",
    "TuningRecord",
    "TuningStep",
    "Verdict",
    "WrittenText",
    "add_in_order",
    "as_json",
    "assign_parts",
    "choose_smallest",
    "digest_of",
    "iterate_layers",
    "layout_from_json",
    "noise_of",
    "part_ends",
    "pruning_groups",
    "throughput_from_json",
]
