"""Shims for s3prl's processes, and stand-ins for packages that are missing."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from wavcube_plugins.evaluation.separation import get_metrics
from wavcube_plugins.evaluation.warping import warp
from wavcube_plugins.s3prl import shims, stand_ins


def test_verification_stays_on_the_cpu_and_nothing_else_does(monkeypatch):
    """`.cuda()` is harmless while speaker verification's code runs on CPU features, and only then."""
    cuda = torch.Tensor.cuda

    class DownstreamExpert:
        def forward(self, mode, features, fail=False):
            mask = torch.ones(2).cuda()
            if fail:
                raise RuntimeError("as code does")
            return mask.device.type

    module = ModuleType("s3prl.downstream.sv_voxceleb1.expert")
    module.DownstreamExpert = DownstreamExpert
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    shims.verification_device()
    shims.verification_device()
    assert torch.Tensor.cuda is cuda
    assert DownstreamExpert().forward("train", [torch.ones(3)]) == "cpu"
    with pytest.raises(RuntimeError, match="as code does"):
        DownstreamExpert().forward("train", [torch.ones(3)], fail=True)
    assert torch.Tensor.cuda is cuda


def test_loader_workers_are_limited_where_asked(monkeypatch):
    loader = torch.utils.data.DataLoader
    monkeypatch.setattr(loader, "__init__", loader.__init__)
    monkeypatch.delenv(shims.WORKERS, raising=False)
    assert not shims.loader_workers()
    monkeypatch.setenv(shims.WORKERS, "0")
    assert shims.loader_workers() and not shims.loader_workers()
    assert loader([1, 2], num_workers=12).num_workers == 0
    positional = loader([1, 2], 2, False, None, None, 12)
    assert positional.num_workers == 0 and positional.batch_size == 2
    assert loader([1, 2]).num_workers == 0


def test_checkpoints_are_whole_or_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "save", torch.save)
    monkeypatch.delenv(shims.WHOLE, raising=False)
    assert not shims.whole_checkpoints()
    monkeypatch.setenv(shims.WHOLE, "1")
    assert shims.whole_checkpoints() and not shims.whole_checkpoints()
    torch.save({"a": 1}, tmp_path / "states-1.ckpt")
    with pytest.raises(AttributeError):
        torch.save({"a": lambda: 0}, str(tmp_path / "states-1.ckpt"))  # breaks off in the middle
    assert torch.load(tmp_path / "states-1.ckpt") == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_stand_ins_are_made_only_for_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in [name for name in sys.modules if name.partition(".")[0] in stand_ins.CONTENTS]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(stand_ins, "CONTENTS", stand_ins.CONTENTS | {"json": dict, "made_up_package": lambda: {"x": 1}})
    stand_ins.offer()
    stand_ins.offer()
    assert sys.meta_path.count(stand_ins.StandInFinder) == 1
    monkeypatch.delitem(sys.modules, "json")
    import json as real

    import made_up_package

    assert real.dumps([1]) == "[1]" and made_up_package.x == 1
    monkeypatch.delitem(sys.modules, "made_up_package")
    assert capsys.readouterr().err == "wavcube: stand-in for made_up_package, which is not installed\n"
    refused = stand_ins.CONTENTS["asteroid.losses"]()["PITLossWrapper"]
    with pytest.raises(ImportError, match="pip install asteroid"):
        refused(print)


def test_warping_is_the_least_cost_of_all_paths():
    """Against a search over every path, with ends free and not; and golden values of dtw-python 1.9.0."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        rows, columns = generator.integers(2, 5), generator.integers(3, 7)
        costs = generator.random((rows, columns))

        def least(i, j, costs=costs):
            steps = [least(i - 1, j - back) for back in (0, 1, 2) if j >= back] if i else [0.0]
            return costs[i, j] + min(steps)

        free = min(least(rows - 1, j) for j in range(columns))
        assert warp(costs, open_begin=True, open_end=True).distance == pytest.approx(free)
    costs = np.random.default_rng(1).random((4, 6))
    assert warp(costs, open_begin=True, open_end=True).normalizedDistance == pytest.approx(GOLDEN_WARP[0])
    assert warp(costs).normalizedDistance == pytest.approx(GOLDEN_WARP[1])
    with pytest.raises(ValueError, match="pip install dtw-python"):
        warp(costs, step_pattern="symmetric2")
    with pytest.raises(ValueError, match="no alignment"):
        warp(np.ones((2, 9)))


GOLDEN_WARP = (0.19773784941037548, 0.5440485523554299)


def test_separation_metrics_match_sources_and_measure_the_mixture():
    generator = np.random.default_rng(0)
    clean = generator.normal(size=(2, 16000))
    mix = clean.sum(axis=0, keepdims=True)
    estimate = clean[::-1] + 0.1 * generator.normal(size=(2, 16000))
    found = get_metrics(mix, clean, estimate, 16000, ["si_sdr"], compute_permutation=True)
    assert found["si_sdr"] == pytest.approx(20, abs=0.3) and found["input_si_sdr"] == pytest.approx(0, abs=0.3)
    assert get_metrics(mix, clean, estimate, 16000, ["si_sdr"])["si_sdr"] < -10


def test_the_shared_sampler_gives_every_rank_its_part():
    parts = []
    for rank in range(2):
        torch.manual_seed(0)
        inner = torch.utils.data.WeightedRandomSampler([1.0] * 6, 6)
        parts.append(list(stand_ins.DistributedSamplerWrapper(inner, num_replicas=2, rank=rank)))
    torch.manual_seed(0)
    drawn = list(torch.utils.data.WeightedRandomSampler([1.0] * 6, 6))
    assert [one for pair in zip(*parts, strict=True) for one in pair] == drawn
