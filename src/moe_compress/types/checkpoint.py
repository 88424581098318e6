"""A checkpoint as its files describe it: tensors, their roles, and what identifies the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moe_compress.types.identity import digest_of
from moe_compress.types.layout import MoELayout


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, known from a file's header alone.

    Attributes:
        name: its name on disk.
        dtype: the safetensors name of its dtype, such as `BF16` or `F8_E4M3`.
        shape: its shape on disk.
        file: the shard's file name inside the checkpoint folder.
        start: absolute offset of its first byte in that file.
        num_bytes: its size in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    num_bytes: int


@dataclass(frozen=True)
class TensorRole:
    """What one checkpoint tensor is to the rewriter.

    Attributes:
        kind: `expert` (belongs to one routed expert), `expert_axis` (one slice per expert along `axis`:
            fused experts, router rows, correction biases) or `untouched`.
        layer: the decoder layer, when the kind is not `untouched`.
        expert: the expert, when the kind is `expert`.
        axis: the axis that counts experts, when the kind is `expert_axis`.
        rows_per_expert: consecutive entries along `axis` that one expert owns.
        num_others: entries along `axis` behind the experts' that belong to none of them and stay.
        is_router: whether the router owns it, so that merging averages rows instead of weights.
    """

    kind: Literal["expert", "expert_axis", "untouched"]
    layer: int | None = None
    expert: int | None = None
    axis: int = 0
    rows_per_expert: int = 1
    num_others: int = 0
    is_router: bool = False


@dataclass(frozen=True)
class Encoding:
    """How a quantised weight is stored: a tensor of codes, and a tensor that scales them.

    Attributes:
        kind: `fp8` (value = code times scale) or `mxfp4` (two 4-bit codes a byte, a power-of-two scale for 32).
        codes: name on disk of the tensor of codes.
        scales: name on disk of the tensor of scales.
        block: rows and columns of the weight that share one scale; the last block of a row or column may be cut.
    """

    kind: Literal["fp8", "mxfp4"]
    codes: str
    scales: str
    block: tuple[int, int]


@dataclass(frozen=True)
class TensorMap:
    """What every tensor of a checkpoint is, and how an expert's name is written.

    Attributes:
        layout: the layout read from config and names.
        roles: tensor name on disk -> role, one for every tensor of the checkpoint.
        count_keys: dotted paths in `config.json` that hold the number of routed experts, every alias included.
        expert_spans: for kind `expert`, tensor name -> `[start, end)` of the expert's index in the name.
        group_keys: dotted paths that hold the number of router groups and of groups a token may use; empty when
            the router has none.
        encodings: name the weight would have unquantised -> how it is stored; empty for a plain checkpoint.
        parts: tensor of a quantised weight (codes, scales, input scales, ...) -> the name the weight would have
            unquantised; a weight with parts but no encoding can be pruned by bytes and not decoded.
        mtp_tensors: tensors of multi-token-prediction layers; those with experts follow the last layer's plan.
        mtp_keys: dotted paths that hold the number of those layers.
        is_interleaved: whether gate and up that are one tensor stand there in turn, neuron by neuron.
        uneven_problem: why layers cannot have different numbers of experts; None when they can.
        mtp_problem: why those layers cannot be pruned and can only be dropped; None when they can.
    """

    layout: MoELayout
    roles: Mapping[str, TensorRole]
    count_keys: tuple[str, ...]
    expert_spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    group_keys: tuple[str, ...] = ()
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    mtp_tensors: frozenset[str] = frozenset()
    mtp_keys: tuple[str, ...] = ()
    mtp_problem: str | None = None
    uneven_problem: str | None = None
    is_interleaved: bool = False

    def rename(self, name: str, expert: int) -> str:
        """Return an expert tensor's name with its expert index replaced."""
        start, end = self.expert_spans[name]
        return f"{name[:start]}{expert}{name[end:]}"


@dataclass(frozen=True)
class CheckpointReference:
    """A checkpoint folder and what identifies its content.

    Attributes:
        path: the folder with `config.json` and safetensors files.
        name: how people call the model: a hub id, or the folder's name.
        weights_digest: sha256 of the names and bytes of its weight files.
        settings_digest: sha256 of its config, tokenizer and templates.
        revision: hub revision or registry version, `local` for a plain folder.
        files: name -> sha256 of the files that the two digests are made of.
    """

    path: Path
    name: str
    weights_digest: str
    settings_digest: str
    revision: str = "local"
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> str:
        """One digest of everything that decides what the model says."""
        return digest_of([self.weights_digest, self.settings_digest])

    def as_provenance(self) -> dict[str, str]:
        """Return the lineage entries of a base model."""
        return {
            "base_id": self.name,
            "base_revision": self.revision,
            "base_weights_digest": self.weights_digest,
            "base_settings_digest": self.settings_digest,
        }
