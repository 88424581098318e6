"""Load a checkpoint whose layers keep different numbers of experts, and any other the stock way."""

from __future__ import annotations

import json
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from moe_compress.atomic import write_atomically
from moe_compress.errors import CheckpointError
from moe_compress.families.building import build_config, build_meta_model, find_auto_class, find_model_class
from moe_compress.families.config_keys import with_layer_values
from moe_compress.families.per_layer import Counts, LayerCounts, graft_layers, read_layer_counts

_NOT_OF_THE_CONFIG = {"dtype", "torch_dtype", "quantization_config"}
"""Arguments of `from_pretrained` that a config has an attribute for, and that are not meant for it."""


def load_model(path: str | PathLike[str], **kwargs: Any) -> Any:
    """Return the model of a checkpoint, with each layer's own number of experts.

    A checkpoint of one number is loaded by the auto class for it, or where its model type is a name of its own
    (Kimi-K2) by the stock class that `architectures` names. One of several numbers has `per_layer_config`, which
    stock classes refuse: its class is made here, and then loads, checks sizes, places and saves like any other.

    Args:
        path: a checkpoint's folder, or its id on the hub.
        kwargs: what `from_pretrained` takes; code that comes with a checkpoint never runs.

    Raises:
        UnsupportedModelError: if the config's layers cannot be built.
    """
    written = PreTrainedConfig.get_config_dict(path, **kwargs)[0]
    layers = read_layer_counts(written)
    # Configs of some families read the one number while they are built, so it is built as if layers were alike.
    config = build_config(layers.plain if layers else written)
    if layers is None and written["model_type"] in CONFIG_MAPPING:
        return find_auto_class(config).from_pretrained(path, trust_remote_code=False, **kwargs)
    for name in kwargs.keys() & vars(config).keys() - _NOT_OF_THE_CONFIG:
        setattr(config, name, kwargs.pop(name))
    model_class = make_class(layers) if layers else find_model_class(written)
    return model_class.from_pretrained(path, config=config, trust_remote_code=False, **kwargs)


def name_loader(folder: str | PathLike[str]) -> str:
    """Return what loads a checkpoint folder: the name of a stock auto class, or else `moe_compress.load_model`.

    Args:
        folder: the folder; `load_model` loads it.
    """
    written = PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0]
    if read_layer_counts(written) is None and written["model_type"] in CONFIG_MAPPING:
        return str(find_auto_class(build_config(written)).__name__)
    return "moe_compress.load_model"


def load_tokenizer(folder: str | PathLike[str]) -> Any:
    """Return the tokenizer of a checkpoint folder.

    Args:
        folder: the folder; code in it never runs, and nobody is asked whether it may.

    Raises:
        CheckpointError: if there is none that transformers can build by itself.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file raises many kinds
        reason = " ".join(str(error).split())[:300]
        if "custom code" in reason:
            raise CheckpointError(
                f"the tokenizer of {folder} can only be built by code that lies beside it, which is never run; "
                "convert it to a tokenizer.json first, as docs/own-model.md shows"
            ) from error
        raise CheckpointError(
            f"transformers does not load the tokenizer of {folder}: {reason}; check tokenizer.json and "
            "tokenizer_config.json"
        ) from error


def make_class(layers: LayerCounts) -> type[PreTrainedModel]:
    """Return the model class of a config whose layers have different numbers of experts."""
    stock: Any = type(build_meta_model(layers.plain))

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        def build(counts: Counts) -> Any:
            other = deepcopy(config)
            for name, value in counts.items():
                setattr(other.get_text_config(), name, value)
            return stock(other, *args, **kwargs)

        stock.__init__(self, config, *args, **kwargs)
        graft_layers(self, layers.counts, build)

    def save_pretrained(self: Any, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        stock.save_pretrained(self, save_directory, *args, **kwargs)
        add_layer_counts(Path(save_directory) / "config.json", layers)

    # The stock name is what a saved config.json is to say, and by name and module the weight conversion is found.
    members = {"__init__": __init__, "save_pretrained": save_pretrained, "__module__": stock.__module__}
    return type(stock.__name__, (stock,), members)


def add_layer_counts(path: Path, layers: LayerCounts) -> None:
    """Write the layers' own numbers of experts into a saved `config.json`, which knows the largest alone."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in {name for own in layers.counts.values() for name in own}:
        values = {layer: own[name] for layer, own in layers.counts.items() if name in own}
        config = with_layer_values(config, [layers.prefix + name], values)
    write_atomically(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
