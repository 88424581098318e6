"""transformers' internals that building and converting call are those of the version they were written for."""

import ast
import inspect
from pathlib import Path

import pytest
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, conversion_mapping, core_model_loading, modeling_utils
from transformers import initialization as weights

from moe_compress.families import building, conversion

WRITTEN_FOR = "5.23"
INTERNALS = {
    conversion_mapping.get_model_conversion_mapping: ["model", "key_mapping", "hf_quantizer", "add_legacy"],
    core_model_loading.convert_and_load_state_dict_in_model: [
        "model", "state_dict", "load_config", "disk_offload_index",
    ],
    core_model_loading.dot_natural_key: ["s"],
    core_model_loading.rename_source_key: [
        "source_key", "weight_renamings", "weight_converters", "base_model_prefix", "meta_state_dict", "reverse",
    ],
    core_model_loading.WeightConverter: ["source_patterns", "target_patterns", "operations", "force_cpu"],
    core_model_loading.WeightRenaming: ["source_patterns", "target_patterns"],
    core_model_loading.Concatenate: ["dim", "num_shards_attribute"],
    core_model_loading.MergeModulelist: ["dim"],
    weights.no_init_weights: [],
    PreTrainedModel._adjust_missing_and_unexpected_keys: ["self", "loading_info"],
    PreTrainedModel._from_config: ["config", "kwargs"],
    PreTrainedModel._get_dtype_plan: ["self", "dtype"],
    PreTrainedConfig._decode_special_floats: ["obj"],
}  # fmt: skip
LOADING_FIELDS = {"weight_mapping", "device_map", "dtype", "dtype_plan", "hf_quantizer"}
REPORT_FIELDS = {"missing_keys", "unexpected_keys", "mismatched_keys", "conversion_errors"}
CHANGED = f"transformers {transformers.__version__} is not as {WRITTEN_FOR}: look at building.py, conversion.py"


def test_the_installed_version_is_the_one_the_calls_were_written_for():
    assert transformers.__version__.startswith(f"{WRITTEN_FOR}."), CHANGED


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.__qualname__)
def test_an_internal_takes_what_it_took(internal):
    assert list(inspect.signature(internal).parameters) == INTERNALS[internal], CHANGED


def test_what_goes_in_and_comes_out_of_loading_has_the_fields_it_had():
    assert set(inspect.signature(modeling_utils.LoadStateDictConfig).parameters) >= LOADING_FIELDS, CHANGED
    assert set(core_model_loading.LoadStateDictInfo.__dataclass_fields__) >= REPORT_FIELDS, CHANGED


@pytest.mark.parametrize("module", [building, conversion], ids=lambda module: module.__name__.split(".")[-1])
def test_no_internal_is_called_that_is_not_guarded_here(module):
    tree = ast.parse(Path(module.__file__).read_text())
    modules = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    private = ("conversion_mapping", "core_model_loading", "initialization", "modeling_utils")
    imported = {
        alias.name
        for node in modules
        if str(node.module).removeprefix("transformers.") in private
        for alias in node.names
    }
    guarded = {internal.__qualname__ for internal in INTERNALS} | {"LoadStateDictConfig"}
    assert imported <= guarded
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    assert {name for name in called - {"__class__", "__name__"} if hasattr(PreTrainedModel, name)} <= {
        name.split(".")[-1] for name in guarded
    }
