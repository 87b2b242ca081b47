"""s3prl's own run_downstream.py, unedited, trains, resumes, evaluates and fine-tunes with `-u wavcube`."""

import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
import yaml
from helpers.s3prl_environment import ROOT, Environment, installed

from wavcube_plugins import load_model
from wavcube_plugins.checkpoints import save_model
from wavcube_plugins.s3prl import hook, run, script, shims, torchaudio_shims

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:the weights of:UserWarning")]

RUNNER = {"gradient_clipping": 1, "gradient_accumulate_steps": 1, "max_keep": 3}
EXAMPLE = {
    "runner": RUNNER | {"total_steps": 2, "log_step": 1, "eval_step": 2, "save_step": 2, "eval_dataloaders": ["dev"]},
    "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-3},
    "downstream_expert": {
        "datarc": {"train_batch_size": 1, "eval_batch_size": 1, "num_workers": 0},
        "modelrc": {"input_dim": 8},
    },
}
EXAMPLE["runner"]["evaluate_ratio"] = 0.005  # one of its two hundred random waveforms


def downstream(*arguments: object, cwd: Path, **options) -> str:
    """Run `python run_downstream.py` as a user would, on the CPU."""
    script = installed().site / "s3prl" / "run_downstream.py"
    return installed().run(script, *arguments, "--device", "cpu", cwd=cwd, **options)


def load(path: Path) -> dict:
    """Read one of s3prl's checkpoints."""
    return torch.load(path, weights_only=False)


def accuracies(output: str) -> dict[str, float]:
    """Read the last accuracy the task printed for each split."""
    return {split: float(value) for split, value in re.findall(r"(dev|test) acc: ([\d.]+)", output)}


def test_example_trains_resumes_and_evaluates(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(EXAMPLE))
    train = ("-m", "train", "-u", "wavcube", "-k", "nano", "-d", "example", "-c", "config.yaml", "-p", "result")
    output = downstream(*train, cwd=tmp_path)
    assert "The selected feature hidden_states's downsample rate is 320" in output
    first = load(tmp_path / "result/states-2.ckpt")
    assert first["Step"] == 2 and "Upstream" not in first  # frozen

    downstream(*train, "-a", "-o", "config.runner.total_steps=4", cwd=tmp_path)
    second = load(tmp_path / "result/states-4.ckpt")
    assert second["Step"] == 4 and float(second["Optimizer"]["state"][0]["step"]) == 4
    assert second["Args"].upstream_ckpt == "nano"

    output = downstream("-m", "evaluate", "-e", "result", cwd=tmp_path)
    assert "Resume from result/states-4.ckpt" in output and "Loading Downstream weights" in output


def test_speaker_identification_learns_and_evaluates_the_same(tmp_path):
    """VoxCeleb1's task on four voices of coloured noise, told apart from what the upstream gives."""
    lists = []
    generator = np.random.default_rng(0)
    for speaker, band in enumerate(((0, 400), (500, 1200), (1500, 3000), (4000, 8000))):
        for take, split in enumerate((1, 1, 1, 2, 3, 3)):
            spectrum = np.fft.rfft(generator.normal(0, 1, 12000 - 400 * take))
            frequencies = np.linspace(0, 8000, len(spectrum))
            wave = np.fft.irfft(spectrum * ((frequencies >= band[0]) & (frequencies <= band[1])))
            name = f"id1000{speaker + 1}/clip/{take}.wav"
            (tmp_path / "data/dev/wav" / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "data/dev/wav" / name, 0.3 * wave / np.abs(wave).max(), 16000)
            lists.append(f"{split} {name}\n")
    (tmp_path / "split.txt").write_text("".join(lists))
    steps = {"total_steps": 80, "log_step": 40, "eval_step": 80, "save_step": 80, "eval_dataloaders": ["dev", "test"]}
    data = {"file_path": str(tmp_path / "data"), "meta_data": "split.txt", "max_timestep": 128000, "num_workers": 0}
    config = {
        "runner": RUNNER | steps,
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-2},
        "downstream_expert": {
            "datarc": data | {"train_batch_size": 6, "eval_batch_size": 2},
            "modelrc": {"projector_dim": 32, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}},
        },
    }
    (tmp_path / "sid.yaml").write_text(yaml.safe_dump(config))
    arguments = ("-u", "wavcube", "-k", "nano", "-d", "voxceleb1", "-c", "sid.yaml", "-p", "sid")
    trained = accuracies(downstream("-m", "train", *arguments, cwd=tmp_path))
    assert trained["test"] >= 0.75
    evaluated = accuracies(downstream("-m", "evaluate", "-e", "sid/dev-best.ckpt", cwd=tmp_path))
    assert evaluated == {"test": trained["test"]}


def test_fine_tuning_of_every_layer(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(EXAMPLE))
    (tmp_path / "options.yaml").write_text("only_hidden_states: true\n")
    arguments = ("-u", "wavcube_layers", "-k", "nano", "-g", "options.yaml", "-d", "example", "-c", "config.yaml")
    output = downstream("-m", "train", "-f", *arguments, "-p", "result", cwd=tmp_path)
    assert "Take a list of 7 features and weighted sum them" in output
    states = load(tmp_path / "result/states-2.ckpt")
    assert states["Featurizer"]["weights"].abs().min() > 0
    before = load_model("nano").state_dict()
    changed = {
        name.removeprefix("model.")
        for name, tensor in states["Upstream"].items()
        if not torch.equal(tensor, before[name.removeprefix("model.")])
    }
    assert {"wavlm.feature_extractor.conv_layers.0.conv.weight", "wavlm.encoder.transformer.layer_norm.bias"} <= changed
    assert all(name.startswith("wavlm.") for name in changed)

    output = downstream("-m", "evaluate", "-e", "result", cwd=tmp_path)
    assert "Loading Upstream weights from the previous experiment" in output


def test_wrapper_runs_the_hugging_face_layout_without_the_hook(tmp_path):
    """A repository with our folder and native weights in it, from the local cache, through the wrapper's shims."""
    repository = tmp_path / "hub" / "models--someone--small"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(ROOT / "s3prl_upstream", snapshot, ignore=shutil.ignore_patterns("__pycache__"))
    save_model(load_model("tiny"), snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(EXAMPLE))
    command = ["-m", "wavcube_plugins.s3prl.run", "run_downstream.py", "-m", "train", "--hub", "huggingface"]
    command += ["-u", "someone/small", "-d", "example", "-c", "config.yaml", "-p", "result", "--device", "cpu"]
    output = installed().run(*command, cwd=tmp_path, WAVCUBE_S3PRL_HOOK="0", HF_HUB_CACHE=str(tmp_path / "hub"))
    assert "shims in use:" in output and "hub_functions" in output
    assert load(tmp_path / "result/states-2.ckpt")["Downstream"]["connector.weight"].shape == (8, 16)

    command = ["-m", "wavcube_plugins.s3prl.run", "run_downstream.py", "-m", "evaluate", "-e", "result"]
    output = installed().run(
        *command, "--device", "cpu", cwd=tmp_path, WAVCUBE_S3PRL_HOOK="0", HF_HUB_CACHE=str(tmp_path / "hub")
    )
    assert "Loading Downstream weights" in output


# The wrapper ----------------------------------------------------------------------------------------------------------


def test_wrapper_finds_scripts_sets_arguments_and_registers(tmp_path, monkeypatch, capsys):
    path = tmp_path / "show.py"
    path.write_text("import sys; print(__name__, sys.argv, sys.path[0])")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(shims, "ALL", ())
    run.main(["--local-rank=1", str(path), "-u", "wavcube"])
    expected = f"__main__ {[str(path), '--local_rank=1', '-u', 'wavcube']} {tmp_path}"
    assert capsys.readouterr().out.strip() == expected
    assert hook.active()


@pytest.mark.parametrize(("arguments", "code", "text"), [([], 2, "usage"), (["-h"], 0, "usage")])
def test_wrapper_explains_itself(arguments, code, text, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(arguments)
    assert stop.value.code == code and text in capsys.readouterr().out


def test_wrapper_names_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere.py: no such script, neither here nor in .*s3prl"):
        script.find_script("nowhere.py")
    assert script.find_script("run_downstream.py").parent.name == "s3prl"
    bare = Environment(tmp_path / "bare", parent=False)
    output = bare.run("-m", "wavcube_plugins.s3prl.run", "run_downstream.py", fails=True, PYTHONPATH=str(ROOT))
    assert output.strip() == "s3prl is not installed in this Python; from a clone: pip install '.[s3prl]'"


def test_wrapper_does_not_take_a_clone_in_the_current_folder_for_the_package(tmp_path, monkeypatch):
    """`python -m` puts the current folder first on the path: it must be gone before s3prl is looked for."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", ["the current folder", *sys.path])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(shims, "ALL", ())
    path = tmp_path / "nothing.py"
    path.touch()
    paths = []
    monkeypatch.setattr(run, "find_script", lambda name: paths.append(list(sys.path)) or path)
    run.main(["nothing.py"])
    assert "the current folder" not in paths[0] and sys.path[0] == str(tmp_path)


# Shims ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch):
    """Returns a function that takes a name away from a library until the test is over, shimmed or not."""

    def remove(module, *names):
        for name in names:
            monkeypatch.setattr(module, name, None, raising=False)
            delattr(module, name)

    return remove


def test_shims_do_nothing_where_nothing_is_wrong(library, monkeypatch):
    monkeypatch.setattr(torchaudio, "set_audio_backend", print, raising=False)
    monkeypatch.setattr(torchaudio, "info", print, raising=False)
    monkeypatch.setattr(torchaudio, "sox_effects", SimpleNamespace(effect_names=lambda: ["rate"]), raising=False)
    load, save, effects = torchaudio.load, torchaudio.save, torchaudio.sox_effects
    assert not (torchaudio_shims.audio_backend() or torchaudio_shims.audio_files() or torchaudio_shims.sox_effects())
    assert (torchaudio.load, torchaudio.save, torchaudio.sox_effects) == (load, save, effects)


def test_audio_backend(library):
    library(torchaudio, "set_audio_backend")
    assert torchaudio_shims.audio_backend()
    torchaudio.set_audio_backend("sox_io")
    assert not torchaudio_shims.audio_backend()


def test_audio_files(library, monkeypatch, tmp_path):
    for name in ("load", "save"):
        monkeypatch.setattr(torchaudio, name, getattr(torchaudio, name))
    library(torchaudio, "info")
    monkeypatch.setattr(torchaudio_shims, "find_spec", lambda name: None)
    assert torchaudio_shims.audio_files() and not torchaudio_shims.audio_files()
    stereo = torch.stack([torch.linspace(-0.5, 0.5, 4000), torch.linspace(0.5, -0.5, 4000)])
    torchaudio.save(str(tmp_path / "a.wav"), stereo, 8000)
    loaded, rate = torchaudio.load(str(tmp_path / "a.wav"), frame_offset=1000, num_frames=500)
    assert rate == 8000 and loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, stereo[:, 1000:1500], rtol=0, atol=2**-14)
    info = torchaudio.info(tmp_path / "a.wav")
    assert (info.sample_rate, info.num_frames, info.num_channels) == (8000, 4000, 2)


def test_sox_effects_without_libsox(library, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchaudio.sox_effects", None)
    library(torchaudio, "sox_effects")
    assert torchaudio_shims.sox_effects()
    from torchaudio.sox_effects import apply_effects_file, apply_effects_tensor

    tone = 0.8 * torch.sin(2 * math.pi * 500 * torch.arange(8000) / 8000)
    soundfile.write(tmp_path / "tone.wav", torch.stack([tone, 0.5 * tone], dim=1).numpy(), 8000)
    waveform, rate = apply_effects_file(
        str(tmp_path / "tone.wav"), [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
    )
    assert rate == 16000 and waveform.shape == (1, 16000)
    expected = 0.75 * 0.8 * 10 ** (-3 / 20) * torch.sin(2 * math.pi * 500 * torch.arange(16000) / 16000)
    torch.testing.assert_close(waveform[0, 200:-200], expected[200:-200], rtol=0, atol=1e-3)
    loud, _ = apply_effects_tensor(tone[:, None], 8000, [["gain", "6"], ["channels", "2"]], channels_first=False)
    assert loud.shape == (8000, 2) and float(loud.max()) == 1.0
    with pytest.raises(ValueError, match=r"sox effect 'reverb -w' needs the library libsox"):
        apply_effects_tensor(tone[None], 8000, [["reverb", "-w"]])


def test_removal_of_silence_is_that_of_sox():
    """Length and sum are those of libsox 14.4.2; the sound lasts 125 ms, 75 ms, or 250 ms at a time."""
    time = torch.arange(32000)
    level = torch.tensor([0, 0.3, 0, 0.2, 0, 0.1, 0.0005, 0.4])[time // 4000]
    sounding = time % 4000 < torch.tensor([4000, 4000, 1000, 4000, 4000, 1200, 4000, 2500])[time // 4000]
    waveform = (level * sounding * torch.sin(2 * math.pi * 250 * time / 16000))[None]
    effect = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]
    trimmed, _ = torchaudio_shims.apply_effects_tensor(waveform, 16000, [effect])
    assert trimmed.shape == (1, 12635)
    assert float(trimmed.abs().sum()) == pytest.approx(1907.546, abs=0.01)
    silent, _ = torchaudio_shims.apply_effects_tensor(torch.zeros(1, 8000), 16000, [effect])
    assert silent.shape == (1, 0)


def test_hub_functions(library, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "stored")
    asked = []

    def download(repo_id, *, revision=None, token=None):
        asked.append((repo_id, revision, token))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", huggingface_hub.HfApi)
    monkeypatch.delattr(huggingface_hub, "__getattr__")  # it would find the names taken away in their modules
    library(huggingface_hub, "HfFolder", "Repository")
    library(huggingface_hub.HfApi, "login")
    assert shims.hub_functions()
    from huggingface_hub import HfApi, HfFolder, Repository, snapshot_download

    HfFolder.save_token(HfApi().login(username="u", password="p"))
    assert HfFolder.get_token() == "stored"
    snapshot_download("owner/name", "v1", use_auth_token=True)
    assert asked == [("owner/name", "v1", None)]
    with pytest.raises(RuntimeError, match="push_to_hf_hub needs huggingface_hub below 1"):
        Repository(local_dir="x")
    assert not shims.hub_functions()
