"""What every stage's parameters have in common: unknown names are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.evaluation.benchmarks import Benchmark
from moe_compress.types import Budget, SizeUnit


class Parameters(BaseModel):
    """Base of all parameter blocks: frozen, and a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


def plain(value: Any) -> Any:
    """Return parameters with typed blocks turned back into dictionaries."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


class DataParameters(Parameters):
    """How demonstrations are checked and chosen."""

    min_demonstrations: int = Field(8, ge=1)
    sample: int | None = Field(None, ge=1, description="take a seeded sample of this many; null takes all")
    min_tokens: int = Field(4, ge=1)
    max_tokens: int = Field(4096, ge=1)
    seed: int = Field(42, ge=0)


class CollectParameters(Parameters):
    """How statistics are collected."""

    mode: Literal["auto", "resident", "streamed"] = "auto"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: int = Field(16, ge=1)
    max_tokens: int = Field(2048, ge=1, description="longer demonstrations are cut here")
    shard: str | None = Field(None, pattern=r"^[1-9]\d*/[1-9]\d*$", description="collect part i of n only: i/n")
    statistics: tuple[str, ...] = Field((), description="collected besides what the method asks for")
    embedding_tokens: int = Field(
        2048, ge=1, description="tokens all experts run on, where embeddings are asked for"
    )


class BudgetParameters(Parameters):
    """How many experts stay, said in exactly one of the first four ways, and where they compete."""

    experts_per_layer: int | None = None
    fraction_dropped: float | None = None
    max_bytes: int | str | None = Field(None, description="of all weight files: 24 GB, 24 GiB, or a number")
    max_parameters: int | str | None = Field(None, description="numbers in all tensors: 13B, 500M, or a number")
    scope: Literal["per_layer", "global", "importance"] = "per_layer"
    multiple_of: int = Field(1, ge=1, description="each layer keeps a multiple of this")
    at_least: int | None = Field(None, ge=1, description="no layer keeps fewer, where layers share a total")
    at_most: int | None = Field(None, ge=1, description="no layer keeps more, where layers share a total")
    layer_fraction_dropped: float = Field(
        0.9, ge=0, le=1, description="no layer loses more, where layers share a total"
    )

    def find_size(self) -> tuple[SizeUnit, int] | None:
        """Return the budget's unit and size, None if it is said in experts.

        Raises:
            ParameterError: if it is not said in exactly one way, or the size is none.
        """
        ways = self.model_dump(include={*_WAYS}, exclude_none=True)
        if len(ways) != 1:
            raise ParameterError(
                f"select.budget needs exactly one of {', '.join(_WAYS)}, got {ways or 'none'}; set the others to "
                "null"
            )
        if self.max_bytes is not None:
            return "bytes", methods.parse_size(self.max_bytes)
        return None if self.max_parameters is None else ("parameters", methods.parse_count(self.max_parameters))

    def as_budget(self) -> Budget:
        """Return the budget as the methods take it; of one said as a size, all but the number of experts.

        Raises:
            ParameterError: if it contradicts itself.
        """
        fields = self.model_dump(exclude={"max_bytes", "max_parameters"})
        return Budget(**(fields if self.find_size() is None else fields | {"fraction_dropped": 0.0}))

    def dropping(self, fraction: float) -> BudgetParameters:
        """Return the budget that drops this fraction instead, bounded as this one."""
        return BudgetParameters(fraction_dropped=fraction, **self.model_dump(exclude={*_WAYS}))


_COUNTS = ("experts_per_layer", "fraction_dropped")
_WAYS = (*_COUNTS, "max_bytes", "max_parameters")


class RefineParameters(Parameters):
    """How many swaps may better the chosen plan on the base model."""

    swaps: int = Field(0, ge=0, description="swaps to try at most; 0 leaves the plan as it is")
    seconds: float | None = Field(None, gt=0, description="stop after about this long; null for no such limit")
    tokens: int = Field(4096, ge=1, description="tokens of the domain's text that each swap is measured on")


class SelectParameters(Parameters):
    """Which method chooses experts, and how many stay."""

    source: str | None = Field(
        None, alias="from", description="the file of a plan to carry out; null plans from statistics"
    )
    method: str = "easy_ep"
    budget: BudgetParameters = BudgetParameters(fraction_dropped=0.5)
    seed: int = Field(42, ge=0)
    groups: Literal["balanced", "flatten"] = "balanced"
    weights: Literal["max_min"] | dict[str, float] | None = Field(None, description="of a mixture's domains")
    parameters: dict[str, Any] = Field({}, description="what is set of the method's own parameters")
    refine: RefineParameters = RefineParameters()

    def as_provenance(self) -> dict[str, str]:
        """Return how a plan is made, as entries of its lineage."""
        return {
            "method": self.method,
            "method_parameters": _list_settings(self.parameters) or "defaults",
            "budget": self._describe_budget(),
            "seed": str(self.seed),
        }

    def _describe_budget(self) -> str:
        budget = self.budget.model_dump(exclude_defaults=True)
        if self.parameters.get("follow") != "rates":
            return _list_settings(budget)
        # C-Prune's rates then take the place of a count; a size is still kept to.
        rest = {name: value for name, value in budget.items() if name not in _COUNTS}
        return ", ".join(filter(None, ("as the rates say", _list_settings(rest))))


def _list_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


class SweepParameters(Parameters):
    """Which plans a sweep tries, and how soon it gives one up."""

    methods: tuple[str, ...] = Field(("easy_ep",), min_length=1)
    fractions_dropped: tuple[float, ...] = Field((0.25, 0.5, 0.75), min_length=1)
    parameters: dict[str, dict[str, Any]] = Field({}, description="method -> what is set of its own parameters")
    rungs: tuple[int, ...] = Field((75, 150), description="items after which clearly worse plans are given up")
    rewrite_merging: bool = Field(False, description="write and load plans that merge, which no mask can try")


class RewriteParameters(Parameters):
    """How the smaller checkpoint is written."""

    layout: Literal["uniform", "per_layer"] = "uniform"
    max_shard_bytes: int = Field(5_000_000_000, ge=1_000_000)
    weights: Literal["keep", "bfloat16"] = Field("keep", description="what becomes of quantised weights")
    mtp: Literal["prune", "drop"] = Field("prune", description="what becomes of layers for multi-token prediction")


class EvaluateParameters(Parameters):
    """What is measured of both models."""

    tasks: tuple[str, ...] = Field(min_length=1)
    limit: int | None = Field(None, ge=1, description="a seeded subset of this many items per task; null takes all")
    heldout_limit: int | None = Field(None, ge=1)
    prompts: int = Field(32, ge=0, description="questions per task after which the models write freely")
    max_new_tokens: int = Field(64, ge=1, description="where such a text is cut")
    suite: str = Field("embedded", description="which of benchmarks.suites is asked besides the tasks")
    chat_template: bool = Field(False, description="put its benchmarks by the tokenizer's chat template")
    run_generated_code: bool = Field(False, description="run programs the models write, confined")
    backend: Literal["hf", "vllm"] = Field("hf", description="what answers tasks and benchmarks")
    batch_size: int = Field(32, ge=1)
    batch_sizes: tuple[int, ...] = Field((1, 8), description="sequences at once that are timed; none times nothing")
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    seed: int = Field(42, ge=0)


class BenchmarksParameters(Parameters):
    """Public benchmarks, and which of them each domain is evaluated on."""

    suites: dict[str, dict[str, tuple[str, ...]]] = {"embedded": {}}
    definitions: dict[str, Benchmark] = {}

    def __str__(self) -> str:
        """Return what MLflow shows; what is asked of a domain is in the run's keys and its results' digests."""
        return f"suites {', '.join(self.suites)}; {len(self.definitions)} definitions"


class ReleaseParameters(Parameters):
    """How a model that passed its gates is registered."""

    alias: str = "candidate"


class DomainParameters(Parameters):
    """One domain's block: its registered model, and what it sets differently from the shared parameters.

    A block with `of` is a mixture: one plan for the domains it names.
    """

    name: str
    registered_model: str
    of: tuple[str, ...] = Field((), description="the domains of a mixture; none for a domain of its own")
    select: dict[str, Any] = {}
    gates: dict[str, dict[str, Any]] = {}
    statistics_gates: dict[str, dict[str, Any]] = {}

    @property
    def targets(self) -> tuple[str, ...]:
        """The domains the model is compressed for: those of the mixture, or the one itself."""
        return self.of or (self.name,)

    def selection(self, shared: SelectParameters) -> SelectParameters:
        """Return the shared selection with this domain's own settings laid over it.

        Raises:
            pydantic.ValidationError: if the domain sets what no selection has.
        """
        return SelectParameters.model_validate({**shared.model_dump(), **self.select})

    def gate_entries(
        self, shared: Mapping[str, Mapping[str, Any]], block: Literal["gates", "statistics_gates"] = "gates"
    ) -> list[dict[str, Any]]:
        """Return a block's gates as entries with `name`, this domain's settings laid over the shared.

        A limit that is itself a block replaces the shared one as a whole.

        Raises:
            ParameterError: if a gate is not a block of settings.
        """
        own: dict[str, dict[str, Any]] = getattr(self, block)
        for name, entry in [*shared.items(), *own.items()]:
            if not isinstance(entry, Mapping):
                raise ParameterError(f"{block}.{name} is {entry!r}, not a block; give it a metric and a limit")
        names = dict.fromkeys([*shared, *own])
        return [{"name": name, **shared.get(name, {}), **own.get(name, {})} for name in names]
