"""ESPnet's own training with `frontend: wavcube` and `feats_extract: wavcube`: registration, checkpoints, two ranks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.paths import ROOT

from wavcube_plugins import load_model
from wavcube_plugins.cli import main as wavcube
from wavcube_plugins.data import kaldi
from wavcube_plugins.espnet import register
from wavcube_plugins.espnet.preparation import prepare_mini

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

register()

import espnet2.tasks.asr  # noqa: E402
import espnet2.tasks.s2st  # noqa: E402
import espnet2.tasks.tts  # noqa: E402
from espnet2.tasks.asr import ASRTask  # noqa: E402
from espnet2.tasks.tts import TTSTask  # noqa: E402

LETTERS = "abcdefghijklmnopqrstuvwxyz'"

ASR = {
    "token_type": "char",
    "frontend": "wavcube",
    "normalize": "utterance_mvn",
    "encoder": "transformer",
    "encoder_conf": "{input_layer: conv2d2, output_size: 48, attention_heads: 2, linear_units: 64, num_blocks: 1, "
    "dropout_rate: 0.0, positional_dropout_rate: 0.0, attention_dropout_rate: 0.0}",
    "model_conf": "{ctc_weight: 1.0, report_cer: false, report_wer: false}",
    "optim": "adam",
    "optim_conf": "lr=3.0e-3",
    "batch_type": "unsorted",
    "batch_size": 4,
    "num_workers": 0,
    "keep_nbest_models": 1,
    "use_tensorboard": "false",
    "use_matplotlib": "false",
    "num_att_plot": 0,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four utterances as a data folder, their latents by `wavcube extract`, and a token list."""
    folder = tmp_path_factory.mktemp("espnet")
    prepare_mini(folder, {"train": 4}, speakers=2, corpus=folder / "audio")
    (folder / "tokens.txt").write_text("\n".join(["<blank>", "<unk>", "<space>", *LETTERS, "<sos/eos>"]) + "\n")
    assert wavcube(["extract", str(folder / "train" / "wav.scp"), str(folder / "latents"), "--model", "nano"]) == 0
    kaldi.format_folder(folder / "train", folder / "train", fs=16000)
    return folder


def options(corpus, out, speech="wav.scp,speech,sound", **more):
    speech = f"{corpus / ('latents' if 'npy' in speech else 'train') / speech}"
    both = {}
    for split in ("train", "valid"):
        both[f"{split}_data_path_and_name_and_type"] = [f"{corpus}/train/text,text,text", speech]
        both[f"{split}_shape_file"] = [f"{corpus}/train/utt2num_samples"]
    return {**ASR, **both, "token_list": corpus / "tokens.txt", "output_dir": out, **more}


def command(values):
    arguments = []
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            arguments += [f"--{name}", str(one)]
    return arguments


def losses(out):
    """Training losses of the epochs, from ESPnet's own record."""
    states = torch.load(Path(out) / "checkpoint.pth", weights_only=False)
    return {epoch: stats["train"]["loss"] for epoch, stats in states["reporter"]["stats"].items()}


def test_every_task_knows_the_names(corpus):
    import espnetez  # imports nearly all of them

    tasks = espnet2.tasks
    for choices in (
        tasks.asr.frontend_choices,
        tasks.spk.frontend_choices,
        tasks.enh_s2t.frontend_choices,
        tasks.enh_s2t.diar_frontend_choices,
        tasks.tts.feats_extractor_choices,
        tasks.s2st.tgt_feats_extract_choices,
    ):
        assert "wavcube" in choices.choices()
    assert "wavcube_cfm" in tasks.tts.tts_choices.choices()
    assert "wavcube" not in tasks.mt.frontend_choices.choices()  # its frontends take text
    parser = espnetez.get_ez_task("tts").get_parser()
    assert parser.parse_args(["--tts", "wavcube_cfm", "--feats_extract", "wavcube"]).tts == "wavcube_cfm"
    before = dict(tasks.asr.frontend_choices.classes), TTSTask.build_vocoder_from_file
    register()
    assert before == (dict(tasks.asr.frontend_choices.classes), TTSTask.build_vocoder_from_file)


def test_vocoder_of_a_task():
    from espnet2.bin.tts_inference import TTSTask as Task

    model = torch.nn.Module()
    model.feats_extract = espnet2.tasks.tts.feats_extractor_choices.get_class("wavcube")("nano")
    assert Task.build_vocoder_from_file(None, None, model, "cpu").fs == 16000
    assert Task.build_vocoder_from_file(None, "wavcube:nano", model, "cpu").latent_dim == 32
    translation = torch.nn.Module()
    translation.tgt_feats_extract = espnet2.tasks.s2st.tgt_feats_extract_choices.get_class("wavcube")("nano")
    assert espnet2.tasks.s2st.S2STTask.build_vocoder_from_file(None, None, translation, "cpu").source == "nano"
    model.feats_extract = espnet2.tasks.tts.feats_extractor_choices.get_class("fbank")()
    assert type(Task.build_vocoder_from_file(None, None, model, "cpu")).__name__ == "Spectrogram2Waveform"


def test_asr_trains_resumes_and_saves_nothing_of_the_frozen_model(corpus, tmp_path):
    more = {"frontend_conf": "{model: nano, features: layers}", "init": "xavier_uniform"}
    ASRTask.main(cmd=command(options(corpus, tmp_path, max_epoch=10, **more)))
    ASRTask.main(cmd=command(options(corpus, tmp_path, max_epoch=20, resume="true", **more)))
    course = losses(tmp_path)
    assert sorted(course) == list(range(1, 21)) and course[20] < 0.5 * course[1]

    state = torch.load(tmp_path / "latest.pth", weights_only=True)
    assert [name for name in state if name.startswith("frontend")] == ["frontend.layer_weights"]
    assert state["frontend.layer_weights"].abs().sum() > 0
    frozen = sum(weight.numel() for weight in load_model("nano").wavlm.parameters())
    assert (tmp_path / "latest.pth").stat().st_size < frozen  # bytes, and the frozen weights have four each

    model, _ = ASRTask.build_model_from_file(tmp_path / "config.yaml", tmp_path / "latest.pth", "cpu")
    frontend = model.frontend
    wanted = load_model("nano").state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in frontend.model.state_dict().items())
    assert torch.equal(frontend.layer_weights.data, state["frontend.layer_weights"])


def test_latents_from_disk_train_like_waveforms(corpus, tmp_path):
    courses = []
    for speech in ("wav.scp,speech,sound", "feats.scp,speech,npy"):
        out = tmp_path / speech[:5]
        ASRTask.main(cmd=command(options(corpus, out, speech, max_epoch=3, frontend_conf="model=nano")))
        courses.append(losses(out))
    assert courses[1] == pytest.approx(courses[0], rel=2e-3)  # float16 on disk
    shapes = dict(line.split() for line in (corpus / "latents" / "feats_shape").open())
    assert shapes.keys() == kaldi.read_table(corpus / "train" / "text").keys()
    model, _ = ASRTask.build_model_from_file(out / "config.yaml", out / "latest.pth", "cpu")
    encoded, lengths = model.encode(torch.randn(1, 16000), torch.tensor([16000]))
    assert encoded.shape[1] == lengths[0] > 20  # trained from disk, and takes a waveform


def test_statistics_of_tts_are_those_of_the_latents(corpus, tmp_path):
    shared = ["--token_type", "char", "--token_list", corpus / "tokens.txt", "--tts_conf", "elayers=1"]
    shared += ["--feats_extract", "wavcube", "--feats_extract_conf", "model=nano", "--normalize", "none"]
    shared += ["--feats_extract_conf", "n_fft=1024", "--feats_extract_conf", "hop_length=320"]
    shared += ["--feats_extract_conf", "win_length=null", "--collect_stats", "true", "--num_workers", "0"]
    for split in ("train", "valid"):
        shared += [f"--{split}_data_path_and_name_and_type", f"{corpus}/train/text,text,text"]
        shared += [f"--{split}_data_path_and_name_and_type", f"{corpus}/train/wav.scp,speech,sound"]
        shared += [f"--{split}_shape_file", f"{corpus}/train/wav.scp"]
    TTSTask.main(cmd=[str(one) for one in [*shared, "--output_dir", tmp_path]])
    found = np.load(tmp_path / "train" / "feats_stats.npz")
    latents = np.concatenate([np.load(path) for path in sorted((corpus / "latents" / "npy").glob("*.npy"))])
    assert found["count"] == len(latents)
    np.testing.assert_allclose(found["sum"], latents.astype(np.float64).sum(0), atol=0.3)


def test_spawned_processes_train_together(corpus, tmp_path):
    """Two spawned ranks, registered by the runner's import alone, end with the same weights as each other."""
    values = options(corpus, tmp_path / "run", max_epoch=2, frontend_conf="{model: nano, features: layers}")
    values |= {"dist_backend": "gloo", "dist_init_method": f"file://{tmp_path}/rendezvous", "ngpu": 0}
    config = tmp_path / "options.yaml"
    config.write_text(yaml.safe_dump({name: _plain(value) for name, value in values.items()}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "helpers"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "wavcube_plugins.espnet.run", "-m", "espnet_spawn", str(config)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    state = torch.load(tmp_path / "run" / "latest.pth", weights_only=True)
    assert [name for name in state if name.startswith("frontend")] == ["frontend.layer_weights"]
    assert state["frontend.layer_weights"].abs().sum() > 0
    assert sorted(losses(tmp_path / "run")) == [1, 2]


def _plain(value):
    return [str(one) for one in value] if isinstance(value, list) else str(value)
