"""Collecting as commands: all domains in one pass, shards and their sum; later runs find the statistics."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.families.derive import derive_tensor_map
from moe_compress.pipelines import collect, digests
from moe_compress.types import CompressionPlan, pruning_groups


def read(path):
    with safe_open(path, framework="np") as file:
        described = json.loads(file.metadata()["statistics"])
        return described, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def succeed(result):
    assert result.exit_code == 0, result.output + str(result.exception)
    return result


def test_all_domains_are_collected_in_one_pass_and_found_by_later_runs(project):
    older = project.folder / "data/02_intermediate/collect/older/unfinished"  # as code before a change left it
    older.mkdir(parents=True)
    (older / "lock").touch()
    succeed(project.run("--pipelines=collect", "--params=collect.mode=streamed"))
    assert not project.find("02_intermediate/collect/older")
    files = project.find("04_feature/statistics/*/*/statistics.safetensors")
    assert [path.parts[-3] for path in files] == ["code", "finance", "general", "math", "medical"]
    assert not project.find("02_intermediate/collect/*/*")
    before = {path: path.stat().st_mtime_ns for path in files}
    joint = read(files[-1])
    succeed(project.run("--pipelines=collect_medical"))  # another mode, the same sums: nothing to do
    assert {path: path.stat().st_mtime_ns for path in files} == before
    succeed(project.run("--pipelines=collect_medical", "--fresh"))
    described, alone = read(files[-1])
    assert described["domain"] == joint[0]["domain"] == "medical"
    assert alone.keys() == joint[1].keys()
    assert all((alone[name] == values).all() for name, values in joint[1].items())


def test_a_killed_collection_goes_on_under_the_same_libraries_alone(project, monkeypatch):
    layers = []

    def stop(record):
        layers.append(record.layer)
        if len(layers) in (1, 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(collect, "log_layer", stop)
    command = ("--pipelines=collect_code", "--params=collect.mode=streamed")
    assert project.run(*command).exit_code and layers == [0]
    assert project.run(*command).exit_code and layers == [0, 1]
    real = digests._version
    monkeypatch.setattr(digests, "_version", lambda name: "99" if name == "transformers" else real(name))
    succeed(project.run(*command))
    assert layers == [0, 1, 0, 1, 2]


def test_shards_are_collected_one_by_one_and_added_up(project):
    """The first by two ranks, as the documentation has it typed; of one batch, the second has nothing to do."""
    succeed(project.run("--pipelines=collect_code", "--params=collect.batch_size=8"))
    (whole,) = project.find("04_feature/statistics/code/*/statistics.safetensors")
    expected = read(whole)[1]
    whole.unlink()
    params = "--params=collect.batch_size=8,collect.mode=streamed,collect.shard"
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "moe_compress"]
    done = subprocess.run(
        [*ranks, "--pipelines=collect_code", f"{params}=1/2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    succeed(project.run("--pipelines=collect_code", f"{params}=2/2"))
    assert not whole.exists()
    succeed(project.run("--pipelines=reduce_code", "--params=collect.batch_size=8"))
    described, found = read(whole)
    assert "shard" not in described["provenance"]
    assert (found["sums.count"] == expected["sums.count"]).all()
    np.testing.assert_allclose(found["sums.gate"], expected["sums.gate"], rtol=1e-9)
    # A shard that is collected anew outdates the whole.
    added = whole.stat().st_mtime_ns
    succeed(project.run("--pipelines=collect_code", "--fresh", f"{params}=2/2"))
    succeed(project.run("--pipelines=reduce_code", "--params=collect.batch_size=8"))
    assert whole.stat().st_mtime_ns > added


def test_a_missing_shard_is_named(project):
    succeed(project.run("--pipelines=collect_code", "--params=collect.shard=2/3,collect.batch_size=2"))
    result = project.run("--pipelines=reduce_code", "--params=collect.batch_size=2")
    assert result.exit_code == 1
    assert "2 of 3 shards are missing" in result.output


@pytest.mark.parametrize("pipeline", ["prune_code"])
def test_a_plan_from_one_shard_is_refused(project, pipeline):
    result = project.run(f"--pipelines={pipeline}", "--params=collect.shard=1/3")
    assert result.exit_code == 1
    assert "collect.shard is 1/3, and a plan needs all shards" in result.output


def test_several_processes_only_collect(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = project.prune(domain="code")
    assert result.exit_code == 1
    assert "2 processes were started, and only collecting is divided among them; start them with" in result.output


def test_two_domains_are_not_compressed_in_one_run(project):
    result = project.run("--pipelines=prune_code,prune_math")
    assert result.exit_code == 1
    assert "one run compresses for one domain, not for code, math" in result.output


def test_ranks_but_the_first_do_not_track(project, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    (project.folder / "mlflow.db").unlink()
    succeed(project.run("--pipelines=collect_code"))
    assert project.find("04_feature/statistics/code/*/statistics.safetensors")
    assert not (project.folder / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("reconstruct", {"sums.elimination_rank", "sums.elimination_error"}),
        ("c_prune_released", {"sums.pooled_gram"}),
    ],
)
def test_what_a_method_makes_of_each_layer_is_collected_for_it(project, method, names):
    succeed(project.run("--pipelines=collect_medical", f"--params=select.method={method}"))
    (file,) = project.find("04_feature/statistics/medical/*/statistics.safetensors")
    assert names <= set(read(file)[1])


def test_how_a_layer_is_reduced_makes_other_statistics(project):
    ranks = []
    for error in ("cosine", "absolute"):
        params = f"--params=select.method=reconstruct,select.parameters.error={error}"
        succeed(project.run("--pipelines=collect_medical", params))
        files = project.find("04_feature/statistics/medical/*/statistics.safetensors")
        ranks.append({path: read(path)[1]["sums.elimination_error"] for path in files})
    assert (len(ranks[0]), len(ranks[1])) == (1, 2)
    one, other = ranks[1].values()
    assert (one != other).any()


def test_an_elimination_is_not_divided(project):
    params = "--params=collect.shard=1/2,collect.batch_size=2,select.method=reconstruct"
    result = project.run("--pipelines=collect_code", params)
    assert result.exit_code == 1
    assert "ranks of eliminations do not add" in result.output.replace("\n", " ")


@pytest.fixture
def uneven(project):
    """Return the folder of the project's model with 16 experts in its first MoE layer and 10 in the second."""
    index = read_index(project.folder / "data/01_raw/model")
    tensor_map = derive_tensor_map(index.config, index.shapes)
    plan = CompressionPlan(tensor_map.layout, (pruning_groups(range(16)), pruning_groups(range(10))), "test")
    folder = project.folder / "data/01_raw/uneven"
    write_checkpoint(plan_rewrite(index, tensor_map, plan, layout="per_layer"), folder)
    return folder


@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_layers_of_different_size_are_collected_from(project, uneven, mode):
    succeed(project.run("--pipelines=collect_medical", f"--params=base_model={uneven},collect.mode={mode}"))
    (file,) = project.find("04_feature/statistics/medical/*/statistics.safetensors")
    described, sums = read(file)
    assert described["layout"]["num_experts"] == [16, 10]
    assert (sums["sums.count"][:, 10:] > 0).any(axis=1).tolist() == [True, False]


@pytest.mark.parametrize("params", ["", ",rewrite.layout=per_layer,select.budget.scope=global"])
def test_layers_of_different_size_are_not_pruned_again(project, uneven, params):
    result = project.prune(f"base_model={uneven}{params}")
    assert result.exit_code == 1
    message = " ".join(result.stderr.strip().splitlines()[-1].split())
    assert "layers keep different numbers of experts" in message and "the model it was made from" in message
    assert not project.find("04_feature/**/*.safetensors") and not project.find("02_intermediate/collect/*")
