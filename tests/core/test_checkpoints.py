"""Loading and saving: public files in all their spellings, native folders, hub names, and what can be wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from wavcube_plugins import WavCube, WavCubeConfig, load_model
from wavcube_plugins.checkpoints import CheckpointError, convert, save_model
from wavcube_plugins.checkpoints.backbones import load_backbone, save_backbone
from wavcube_plugins.config import PRESETS
from wavcube_plugins.errors import InputError


@pytest.fixture
def official(golden_checkpoint):
    """The content of a public checkpoint, to be changed and saved again."""
    return torch.load(golden_checkpoint, weights_only=True)


def latent_of(model):
    with torch.inference_mode():
        return model.encode(torch.sin(torch.arange(8000) / 7.0)[None])[0]


def test_stage_1_takes_the_teacher_and_stage_2_the_student(golden_checkpoint, official):
    stage2 = load_model(golden_checkpoint)
    stage1 = load_model(golden_checkpoint.with_name("official_stage1.ckpt"))
    assert (stage1.metadata["stage"], stage2.metadata["stage"]) == ("1", "2")
    weight = "encoder.layers.1.feed_forward.output_dense.weight"
    for model, part in ((stage1, "model"), (stage2, "rep_model")):
        ours = model.wavlm.encoder.transformer.layers[1].feed_forward.output_dense.weight
        source = official["state_dict"] if part == "rep_model" else torch.load(
            golden_checkpoint.with_name("official_stage1.ckpt"), weights_only=True
        )["state_dict"]  # fmt: skip
        assert torch.equal(ours, source[f"feature_extractor.{part}.{weight}"])
    assert stage2.trained and not stage2.training


def test_both_spellings_of_weight_norm(official, golden_checkpoint, tmp_path):
    state = official["state_dict"]
    for part in ("model", "rep_model"):
        stem = f"feature_extractor.{part}.encoder.pos_conv_embed.conv."
        state[stem + "weight_g"] = state.pop(stem + "parametrizations.weight.original0")
        state[stem + "weight_v"] = state.pop(stem + "parametrizations.weight.original1")
    torch.save(official, tmp_path / "old.ckpt")
    assert torch.equal(latent_of(load_model(tmp_path / "old.ckpt")), latent_of(load_model(golden_checkpoint)))


def test_the_file_format_before_torch_1_6(official, golden_checkpoint, tmp_path):
    torch.save(official, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert torch.equal(latent_of(load_model(tmp_path / "old.ckpt")), latent_of(load_model(golden_checkpoint)))


def test_a_file_with_every_name_and_shape_of_the_published_ones_is_the_paper_model(golden_checkpoint, tmp_path):
    lines = (golden_checkpoint.parents[1] / "state_dict_keys.tsv").read_text().splitlines()[1:]
    state = {}
    for line in lines:
        name, shape = line.split("\t")
        # One number seen at every place, or the file would have gigabytes.
        state[name] = torch.zeros(()).expand([int(size) for size in shape.split("x")])
    torch.save({"state_dict": state}, tmp_path / "full.ckpt")
    with FakeTensorMode():  # and so would the model
        model = load_model(tmp_path / "full.ckpt")
    assert model.config == PRESETS["wavcube"] and model.metadata["stage"] == "2"
    with torch.device("meta"):
        expected = WavCube(PRESETS["wavcube"]).state_dict()
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == {
        n: tuple(t.shape) for n, t in expected.items()
    }


def test_native_folder_round_trip(golden_model, tmp_path):
    golden_model.metadata["note"] = "kept"
    save_model(golden_model, tmp_path / "folder")
    assert sorted(os.listdir(tmp_path / "folder")) == ["config.json", "model.safetensors"]
    for source in (tmp_path / "folder", str(tmp_path / "folder"), tmp_path / "folder" / "model.safetensors"):
        model = load_model(source)
        assert torch.equal(latent_of(model), latent_of(golden_model))
        assert model.config == golden_model.config
        assert model.trained and model.metadata["note"] == "kept"
    half = load_model(tmp_path / "folder", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_half_precision_on_disk_is_float32_in_use(golden_model, tmp_path):
    save_model(golden_model, tmp_path, dtype=torch.float16)
    assert load_file(tmp_path / "model.safetensors")["compressor.projection.0.weight"].dtype == torch.float16
    model = load_model(tmp_path)
    assert model.dtype == torch.float32
    assert (latent_of(model) - latent_of(golden_model)).abs().max() < 0.01


def test_convert_keeps_what_inference_needs(golden_checkpoint, tmp_path):
    config = convert(golden_checkpoint, tmp_path / "folder")
    assert config == WavCubeConfig.preset("tiny")
    model = load_model(tmp_path / "folder")
    assert torch.equal(latent_of(model), latent_of(load_model(golden_checkpoint)))
    assert model.metadata["stage"] == "2" and model.metadata["global_step"] == "390000"
    names = load_file(tmp_path / "folder" / "model.safetensors")
    assert not any("disc" in name or "utmos" in name or "dconv1" in name for name in names)


@pytest.mark.slow
def test_convert_needs_memory_near_what_is_kept(official, tmp_path):
    # 600 MB of optimiser state beside 2 MB of weights must not be read.
    official["optimizer_states"] = [{"state": {i: {"exp_avg": torch.zeros(25_000_000)} for i in range(6)}}]
    torch.save(official, tmp_path / "large.ckpt")
    code = (
        "import sys, resource; from wavcube_plugins.checkpoints import convert\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "convert(sys.argv[1], sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, tmp_path / "large.ckpt", tmp_path / "folder"]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 100_000  # kB


def test_sizes_that_no_preset_has(tmp_path, official):
    state = official["state_dict"]
    for name in [name for name in state if "vocoder.layers.1." in name]:
        del state[name]
    torch.save(official, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"sizes are those of no preset.*pass config="):
        load_model(tmp_path / "other.ckpt")
    sizes = WavCubeConfig.preset("tiny").to_dict()
    sizes["decoder"]["vocoder_layers"] = 1
    model = load_model(tmp_path / "other.ckpt", config=WavCubeConfig.from_dict(sizes))
    assert len(model.decoder.vocoder.layers) == 1
    with pytest.raises(CheckpointError, match=r"does not fit: expected wavlm.conv_dims \(512, .*found \(32, "):
        load_model(tmp_path / "other.ckpt", config="wavcube")
    (tmp_path / "config.json").write_text(json.dumps({"config": sizes}))
    assert len(load_model(tmp_path / "other.ckpt").decoder.vocoder.layers) == 1


def test_a_folder_with_one_public_file(golden_checkpoint, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "some_epoch=1.ckpt").write_bytes(golden_checkpoint.read_bytes())
    assert load_model(tmp_path).metadata["stage"] == "2"
    (tmp_path / "checkpoints" / "other.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"exactly one .ckpt file, found other.ckpt, some_epoch=1.ckpt"):
        load_model(tmp_path)


def test_a_loaded_model_survives_its_file(golden_checkpoint, tmp_path):
    path = tmp_path / "copy.ckpt"
    path.write_bytes(golden_checkpoint.read_bytes())
    model = load_model(path)
    expected = latent_of(model)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(latent_of(model), expected)


def test_no_pickled_code_runs(official, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    official["hyper_parameters"] = Harmful()
    torch.save(official, tmp_path / "harmful.ckpt")
    with pytest.raises(CheckpointError, match=r"plain tensors and numbers, found the Python object posix\.system"):
        load_model(tmp_path / "harmful.ckpt")
    assert not (tmp_path / "ran").exists()


def broken(kind, golden_checkpoint, official, tmp_path):
    path = tmp_path / f"{kind}.ckpt"
    content = golden_checkpoint.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no checkpoint\n" * 100)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "weights only":
        torch.save({"encoder.weight": torch.zeros(3)}, path)
    elif kind == "foreign lightning":
        torch.save({"state_dict": {"encoder.weight": torch.zeros(3)}}, path)
    elif kind == "missing tensor":
        del official["state_dict"]["backbone.upsample_proj.bias"]
        torch.save(official, path)
    elif kind == "missing projection":
        del official["state_dict"]["feature_extractor.enc_transformer.1.attention.k_proj.weight"]
        torch.save(official, path)
    elif kind == "missing part":
        state = official["state_dict"]
        official["state_dict"] = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
        torch.save(official, path)
    elif kind == "wrong shape":
        official["state_dict"]["backbone.upsample_proj.bias"] = torch.zeros(7)
        torch.save(official, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "expected a PyTorch checkpoint, found a truncated or foreign file of 1,"),
        ("empty", "truncated or foreign file of 0 bytes"),
        ("text", "found"),
        ("list", "expected a Lightning checkpoint with a 'state_dict' of tensors, found a list"),
        ("weights only", "found the entries encoder.weight"),
        ("foreign lightning", "expected a WavCube state_dict .*found encoder.weight"),
        ("missing tensor", "it lacks decoder.upsample_proj.bias"),
        ("missing projection", "lacks .*compressor.layers.1.attention.attention.in_proj_weight"),
        ("missing part", "lacks .*decoder"),
        ("wrong shape", r"decoder.upsample_proj.bias was expected with shape \(64,\), found \(7,\)"),
    ],
)
def test_broken_public_files_are_one_sentence(kind, message, golden_checkpoint, official, tmp_path):
    path = broken(kind, golden_checkpoint, official, tmp_path)
    for action in (load_model, lambda source: convert(source, tmp_path / "out")):
        with pytest.raises(CheckpointError, match=message) as caught:
            action(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_broken_native_folders_are_one_sentence(golden_model, tmp_path):
    save_model(golden_model, tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, description = weights.read_bytes(), config.read_text()

    weights.write_bytes(whole[:5000])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load_model(tmp_path)
    weights.write_bytes(whole)
    for text, message in (
        ("{", "expected a WavCube configuration, but"),
        ("[]", "it has no entry 'config'"),
        (description.replace("latent_dim", "latent_size"), r"unknown setting bottleneck\.'latent_size'"),
        (description.replace('"latent_dim": 16', '"latent_dim": 24'), r"expected with shape \(44,\), found \(40,\)"),
        (description.replace('"latent_dim": 16', '"latent_dim": "x"'), "latent_dim must be int, got 'x'"),
    ):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_model(tmp_path)
        assert "\n" not in str(caught.value)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"expected config.json beside it, found none"):
        load_model(weights)


def test_options_that_do_not_apply_are_refused(golden_model, golden_checkpoint, tmp_path):
    save_model(golden_model, tmp_path / "native")
    for source, options, message in (
        (tmp_path / "native", {"config": "tiny"}, "has its own sizes in config.json; config is for Lightning files"),
        (tmp_path / "native" / "model.safetensors", {"config": golden_model.config}, "has its own sizes"),
        ("nano", {"config": "nano"}, "nano: has its own sizes"),
        ("nano", {"revision": "main"}, "nano: is not on the hub, so revision 'main' does not apply"),
        ("tiny", {"revision": "v2"}, "tiny: is not on the hub"),
        (tmp_path / "native", {"revision": "v2"}, "native: is not on the hub"),
        (golden_checkpoint, {"revision": "v2"}, "is not on the hub"),
        (tmp_path / "native", {"config": "huge"}, "unknown preset 'huge'"),
        (tmp_path / "native", {"dtype": "float15"}, "dtype must be one of float32, bfloat16, float16, got 'float15'"),
        (tmp_path / "native", {"dtype": torch.int8}, "dtype must be one of .*, got torch.int8"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_model(source, **options)
        assert "\n" not in str(caught.value)


def test_types_are_given_by_name_as_well(golden_model, tmp_path):
    save_model(golden_model, tmp_path / "model", dtype="float16")
    assert load_file(tmp_path / "model" / "model.safetensors")["compressor.projection.0.weight"].dtype == torch.float16
    assert load_model(tmp_path / "model", dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(tmp_path / "model", dtype=torch.float64).dtype == torch.float64
    save_backbone(golden_model.wavlm, tmp_path / "backbone", dtype="bfloat16")
    assert load_file(tmp_path / "backbone" / "model.safetensors")["encoder.transformer.layer_norm.weight"].dtype == (
        torch.bfloat16
    )
    with pytest.raises(InputError, match="got 'half'"):
        save_model(golden_model, tmp_path / "other", dtype="half")
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_not_called_truncated(golden_model, tmp_path):
    (tmp_path / "unreadable.ckpt").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=r"unreadable\.ckpt: cannot be read, input/output error"):
        load_model(tmp_path / "unreadable.ckpt")
    save_model(golden_model, tmp_path / "native")
    (tmp_path / "native" / "model.safetensors").unlink()
    (tmp_path / "native" / "model.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_model(tmp_path / "native")


def test_running_out_of_memory_is_not_called_truncated(official, tmp_path):
    official["state_dict"]["feature_extractor.model.large"] = torch.zeros(100_000_000)
    torch.save(official, tmp_path / "large.ckpt", _use_new_zipfile_serialization=False)
    torch.save(official, tmp_path / "mapped.ckpt")
    code = (
        "import sys, resource, torch\n"
        "from wavcube_plugins import load_model\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)\n"
        "try:\n"
        "    load_model(sys.argv[1])\n"
        "except MemoryError as error:\n"
        "    print('out of memory')"
    )
    for name in ("large.ckpt", "mapped.ckpt"):
        command = [sys.executable, "-c", code, tmp_path / name]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "out of memory\n", name


@pytest.mark.filterwarnings("ignore:.*UNTRAINED")
def test_known_names_win_over_folders_of_the_name(golden_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nano", "tiny", "wavcube", "hubert_base"):
        save_model(golden_model, name)
    ours = latent_of(golden_model)
    assert load_model("nano").latent_dim == 32
    assert not load_model("tiny").trained
    with pytest.raises(CheckpointError, match="wavcube: it is not in the local cache"):
        load_model("wavcube", local_files_only=True)
    for source in ("./nano", Path("nano"), f"{tmp_path}/wavcube"):
        assert torch.equal(latent_of(load_model(source)), ours)
    assert load_backbone("nano").config == PRESETS["nano"].wavlm
    monkeypatch.setattr(torch.hub, "get_dir", lambda: tmp_path / "hub")
    with pytest.raises(CheckpointError, match="hubert_base: not on this machine"):
        load_backbone("hubert_base", local_files_only=True)
    for source in ("./nano", Path("hubert_base")):
        assert load_backbone(source).config == golden_model.config.wavlm


def test_a_configuration_of_no_mapping_beside_a_public_file(golden_checkpoint, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(golden_checkpoint.read_bytes())
    for text, kind in (("[1]", "list"), ('"config"', "str"), ('{"config": 3}', "int")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=f"not a WavCube configuration, .* must be a mapping, got {kind}"):
            load_model(tmp_path / "a.ckpt")


def test_unknown_names_are_one_sentence(tmp_path):
    for source, message in (
        ("nanoo", "no such file or folder; known names are nano, tiny, wavcube, wavcube_pro"),
        ("./missing/folder", "no such file or folder"),
        ("missing/model.ckpt", "no such file or folder"),
        ("yhaha/WavCube", "not in the local cache"),
        ("wavcube_pro", "not in the local cache"),
        ("owner/--bad..name", "not"),
        (tmp_path, "expected model.safetensors with config.json, or exactly one .ckpt file, found neither"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_model(source, local_files_only=True)
        assert "\n" not in str(caught.value)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"found \.onnx"):
        load_model(tmp_path / "model.onnx")


def test_hub_names_are_taken_from_the_local_cache(golden_checkpoint, golden_model, tmp_path, monkeypatch):
    """A cache laid out as huggingface_hub does it serves both published models and a native repository."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def repository(name, revision="main", commit="0" * 40):
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        return folder / "snapshots" / commit

    snapshot = repository("yhaha/WavCube")
    for folder, stage in (("WavCube", 2), ("WavCube-Pro", 1)):
        (snapshot / folder / "checkpoints").mkdir(parents=True)
        source = golden_checkpoint.with_name(f"official_stage{stage}.ckpt")
        (snapshot / folder / "checkpoints" / "epoch.ckpt").write_bytes(source.read_bytes())
    for source, stage in (
        ("wavcube", "2"),
        ("yhaha/WavCube", "2"),
        ("wavcube_pro", "1"),
        ("yhaha/WavCube/WavCube-Pro", "1"),
    ):
        assert load_model(source, local_files_only=True).metadata["stage"] == stage
    assert load_model("wavcube").metadata["stage"] == "2"  # HF_HUB_OFFLINE is honoured as well
    with pytest.raises(CheckpointError, match="not in the local cache"):
        load_model("wavcube", revision="v2", local_files_only=True)
    with pytest.raises(CheckpointError, match="has no folder 'Missing'"):
        load_model("yhaha/WavCube/Missing", local_files_only=True)

    save_model(golden_model, repository("someone/native", revision="v2", commit="1" * 40))
    model = load_model("someone/native", revision="v2", local_files_only=True)
    assert torch.equal(latent_of(model), latent_of(golden_model))


def test_untrained_presets_say_so_and_are_always_the_same():
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="'tiny' are UNTRAINED"):
        first = load_model("tiny")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    with pytest.warns(UserWarning, match="UNTRAINED"):
        second = load_model("tiny")
    assert not first.trained
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
