"""Training runs by train.py: what they leave behind, how they go on after a stop, and what bad input gets."""

import functools
import importlib.util
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from helpers.paths import GOLDEN, ROOT
from safetensors.torch import load_file

from wavcube_plugins import WavCubeConfig, load_model
from wavcube_plugins.checkpoints import load_teacher
from wavcube_plugins.checkpoints.backbones import save_backbone
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.pretraining import runs
from wavcube_plugins.pretraining.losses import STAGE_WEIGHTS
from wavcube_plugins.pretraining.step import PretrainingStep

SCRIPTS = ROOT / "speechbrain_hparams" / "pretrain"

# Eight steps of a tiny model, the last four with discriminators; checkpoints after 3, 4, 7 and 8.
SMALL = {
    **{"discriminator_width": 0.02, "crop_seconds": 0.4, "valid_seconds": 1.0, "batch_size": 2, "num_workers": 0},
    **{"total_steps": 8, "warmup_steps": 2, "adversarial_from": 4, "validate_every": 4, "log_every": 2, "examples": 1},
    **{"ckpt_interval_steps": 3, "device": "cpu"},
}

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pretraining_script", SCRIPTS / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder with `speech`, where one of twelve files is broken, and a small `encoder`."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "speech").mkdir()
    random = np.random.default_rng(0)
    for index in range(11):
        seconds = 0.5 + 0.1 * index
        rate = 16000 if index % 3 else 22050
        time = np.arange(int(seconds * rate)) / rate
        sound = np.sin(2 * np.pi * (120 + 30 * index) * time) * (np.sin(2 * np.pi * 4 * time) > 0)
        soundfile.write(folder / "speech" / f"{index:02d}.flac", 0.3 * sound + random.normal(0, 0.01, len(time)), rate)
    (folder / "speech" / "broken.wav").write_text("not audio")
    torch.manual_seed(0)
    save_backbone(WavLM(WavCubeConfig.preset("tiny").wavlm), folder / "encoder")
    return folder


def words(stage, output, material, **settings):
    """The arguments of train.py."""
    own = {"size": "tiny", "backbone": material / "encoder"} if stage == 1 and "start" not in settings else {}
    settings = {"train": material / "speech", "output_folder": output, **own, **SMALL, **settings}
    pairs = [(f"--{name}", str(value)) for name, value in settings.items() if value is not ...]
    return [str(SCRIPTS / f"stage{stage}.yaml"), *(word for pair in pairs for word in pair)]


@pytest.fixture(scope="module")
def train(script, material):
    """Runs train.py in this process; SpeechBrain's changes to logging are undone."""

    def run(stage, output, code=0, **settings):
        handlers, level, hook = logging.root.handlers[:], logging.root.level, sys.excepthook
        try:
            status = script.main(words(stage, output, material, **settings))
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            sys.excepthook = hook
        assert status == code
        return output

    return run


def launch(output, material, processes=1, **settings):
    """Start train.py as a user does."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        settings["distributed_backend"] = "gloo"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*start, str(SCRIPTS / "train.py"), *words(1, output, material, **settings)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True,
    )  # fmt: skip


def finish(process):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def kill_all(process):
    """SIGKILL for a process and all that it has started."""
    family, waiting = [], [process.pid]
    while waiting:
        parent = waiting.pop()
        family.append(parent)
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if int(fields[1]) == parent:
                waiting.append(int(status.parent.name))
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def kill_in_mid_epoch(process, output):
    """SIGKILL as soon as there is a checkpoint between two validations."""
    deadline = time.monotonic() + 600
    while not any(not runs.read_meta(path)["end-of-epoch"] for path in runs.checkpoints(output)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    kill_all(process)
    assert runs.read_meta(runs.checkpoints(output)[-1])["step"] < SMALL["total_steps"]


def final_state(output, step=8):
    """Everything that the last checkpoint of a run holds."""
    last = runs.checkpoints(output)[-1]
    assert runs.read_meta(last)["step"] == step
    names = ("model", "discriminators", "training")
    return [torch.load(last / f"{name}.ckpt", weights_only=True) for name in names]


def equal(a, b):
    """Whether nested dictionaries, lists, tensors and numbers are the same to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def progress(output):
    return [json.loads(line) for line in (output / "progress.jsonl").read_text().splitlines()]


# A run and what it leaves ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    """A run of stage 1 that nothing disturbed."""
    return train(1, tmp_path_factory.mktemp("runs") / "stage1")


def test_a_run_leaves_numbers_sounds_pictures_and_checkpoints(alone):
    lines = progress(alone)
    steps = [line["step"] for line in lines if "mel" in line]
    assert steps == [2, 4, 6, 8]
    assert [line["step"] for line in lines if "valid mel" in line] == [4, 8]
    assert "disc_mp" not in lines[0] and "disc_mp" in lines[-2]
    assert lines[0]["epoch"] == pytest.approx(4 / 11)
    assert lines[0]["learning rate"] == 5e-5 and lines[0]["skipped steps"] == 0
    assert {"gradient norm/generator", "seconds per step"} <= lines[0].keys()
    assert {"valid semantic", "valid STOI", "valid PESQ-WB"} <= lines[-1].keys()
    assert len(list((alone / "tensorboard").iterdir())) == 1
    assert {path.suffixes[-1] for path in (alone / "examples").iterdir()} == {".flac", ".png"}
    assert (alone / "log.txt").is_file()

    metas = [runs.read_meta(path) for path in runs.checkpoints(alone)]
    assert [meta["step"] for meta in metas] == [4, 7, 8]  # of those between validations, the newest
    assert metas[-1]["mel"] == pytest.approx(lines[-1]["valid mel"], rel=1e-5)


def test_a_run_says_what_it_is_and_keeps_its_teacher(alone, material):
    description = runs.read_run(alone)
    assert description["stage"] == 1 and description["settings"]["batch_size"] == 2
    assert WavCubeConfig.from_dict(description["config"]).decoder == WavCubeConfig.preset("tiny").decoder
    teacher = load_file(alone / "teacher" / "model.safetensors")
    assert equal(teacher, load_file(material / "encoder" / "model.safetensors"))
    state, _, _ = final_state(alone)
    assert not any(name.startswith("wavlm.") for name in state)  # it is not repeated in every checkpoint


def test_broken_files_are_named_and_counted(train, tmp_path, capfd, script):
    train(1, tmp_path / "run", total_steps=4, adversarial_from=4, batch_size=4, ckpt_interval_steps=0)
    out, err = capfd.readouterr()
    assert out.count("skipped broken: ") == 1 and "not readable as audio" in out
    assert "done: 4 steps, 0 of them skipped" in out
    assert f"utterances that could not be used: 1, see {tmp_path}/run/skipped.*.tsv" in err
    name, reason = (tmp_path / "run" / "skipped.0.tsv").read_text().strip().split("\t")
    assert name == "broken" and "not readable as audio" in reason


def test_a_run_is_exported(alone, tmp_path):
    for which, step in (("last", 8), ("best", None)):
        runs.export_run(alone, tmp_path / which, which=which)
        model = load_model(tmp_path / which)
        assert model.trained and model.metadata["stage"] == "1"
        assert step is None or model.metadata["global_step"] == str(step)
    state, _, _ = final_state(alone)
    found = load_model(tmp_path / "last").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    with torch.inference_mode():
        assert torch.isfinite(model.reconstruct(0.1 * torch.randn(1, 8000))[0]).all()


def test_stage_2_goes_on_from_stage_1s_folder(train, alone, tmp_path):
    output = train(2, tmp_path / "stage2", start=alone, total_steps=2, validate_every=2, adversarial_from="null")
    before, discriminators, _ = final_state(alone)
    after, trained, _ = final_state(output, 2)
    student = [name for name in after if name.startswith("wavlm.")]
    teacher = load_file(alone / "teacher" / "model.safetensors")
    assert student and equal(load_file(output / "teacher" / "model.safetensors"), teacher)
    assert any(not torch.equal(after[name], teacher[name.removeprefix("wavlm.")]) for name in student)
    for name, tensor in before.items():
        assert (after[name] - tensor).abs().max() < 3e-4  # two steps at most of 1e-4 from where stage 1 ended
    for name, tensor in discriminators.items():
        assert (trained[name] - tensor).abs().max() < 3e-4
    assert {"semantic_student", "fm_mrd"} <= progress(output)[0].keys()
    assert runs.read_run(output)["origin"] == "stage 1 run stage1, step 8"
    assert runs.load_run(output)[0].metadata["stage"] == "2"


def test_stage_2_goes_on_from_a_public_checkpoint_in_bfloat16(train, tmp_path):
    source = GOLDEN / "official_stage2.ckpt"
    settings = {
        "total_steps": 2,
        "validate_every": 2,
        "precision": "bf16",
        "checkpointing": True,
        "max_gradient_norm": 1,
    }
    output = train(2, tmp_path / "stage2", start=source, **settings)
    state, _, _ = final_state(output, 2)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert equal(load_file(output / "teacher" / "model.safetensors"), dict(load_teacher(source).state_dict()))
    assert runs.read_run(output)["origin"] == "official_stage2.ckpt"


# Going on after a stop ------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, step):
    """Stop training as Ctrl-C does, before a step."""
    call = PretrainingStep.__call__

    def interrupted(self, waveforms, number, *schedule):
        if number == step:
            raise KeyboardInterrupt
        return call(self, waveforms, number, *schedule)

    monkeypatch.setattr(PretrainingStep, "__call__", interrupted)


def test_killed_in_mid_epoch_and_resumed_it_ends_with_the_same_weights(train, alone, material, tmp_path):
    output = tmp_path / "run"
    kill_in_mid_epoch(launch(output, material), output)
    train(1, output)
    assert equal(final_state(output), final_state(alone))


def test_killed_with_two_processes_and_resumed_it_ends_with_the_same_weights(material, alone, tmp_path):
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "run"
    said = finish(launch(undisturbed, material, 2))
    kill_in_mid_epoch(launch(output, material, 2), output)
    finish(launch(output, material, 2))
    assert equal(final_state(output), final_state(undisturbed))
    assert not equal(final_state(undisturbed)[0], final_state(alone)[0])  # of twice the data
    assert progress(undisturbed)[0]["epoch"] == pytest.approx(8 / 11)
    assert said.count("done: 8 steps") == 1
    # The second process met the broken file or the first one did; it is counted once.
    assert said.count("utterances that could not be used: 1,") == 1


@pytest.mark.parametrize("step", [1, 4, 6])
def test_interrupted_anywhere_it_goes_on(train, alone, tmp_path, monkeypatch, capsys, step):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        train(1, output, code=130)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    if step == 1:  # nothing was saved: it must begin as before, and not with random weights
        assert error == "train.py: error: interrupted; there is no checkpoint yet"
    else:
        assert error.startswith(f"train.py: error: interrupted; the last good checkpoint is {output}/save/CKPT+")
    train(1, output, num_workers=1)
    assert equal(final_state(output), final_state(alone))
    assert [line["step"] for line in progress(output) if "valid mel" in line] == [4, 8]


def test_killed_while_a_checkpoint_is_written(train, alone, tmp_path, monkeypatch, script):
    output, saved = tmp_path / "run", []
    save = torch.save

    def cut_short(content, path):
        saved.append(path)
        if len(saved) == 5:  # in the midst of the second checkpoint
            Path(path).write_bytes(b"half of it")
            raise KeyboardInterrupt
        save(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut_short)
        train(1, output, code=130)
    assert len(list((output / "save").iterdir())) == 2 and len(runs.checkpoints(output)) == 1
    train(1, output)
    assert equal(final_state(output), final_state(alone))
    assert len(list((output / "save").iterdir())) == 3  # what was left of the broken one is gone


def test_a_run_may_stop_early_validate_at_other_steps_and_go_on(train, alone, tmp_path):
    output = tmp_path / "run"
    train(1, output, stop_at=5)
    assert [line["step"] for line in progress(output) if "valid mel" in line] == [4, 5]
    train(1, output, validate_every=3)
    assert [line["step"] for line in progress(output) if "valid mel" in line] == [4, 5, 6, 8]
    assert equal(final_state(output), final_state(alone))
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.ckpt")}
    train(1, output)  # there is nothing left to do
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*.ckpt")}


def test_averaged_mixed_and_disturbed_a_run_resumes_exactly_and_exports_the_average(train, material, tmp_path):
    sources = f"[{material / 'speech'}, {material / 'speech'}]"
    settings = {"train": sources, "train_weights": "[3, 1]", "ema_decay": 0.9, "disturb": True}
    whole = train(1, tmp_path / "whole", **settings)
    parts = train(1, tmp_path / "parts", stop_at=4, **settings)
    train(1, parts, **settings)
    assert equal(final_state(whole), final_state(parts))
    averages = [torch.load(runs.checkpoints(run)[-1] / "average.ckpt", weights_only=True) for run in (whole, parts)]
    assert equal(*averages) and averages[0].keys()
    exported = runs.export_run(whole, tmp_path / "export").state_dict()
    live = final_state(whole)[0]
    assert all(torch.equal(exported[name], weight) for name, weight in averages[0].items())
    assert any(not torch.equal(exported[name], live[name]) for name in averages[0])


def test_a_time_limit_ends_a_run_with_its_schedule_and_counts_every_start(train, script, tmp_path, monkeypatch):
    # A clock that goes on by a second whenever somebody looks at it: two minutes are a few dozen steps of a million.
    monkeypatch.setattr(script.Clock, "now", functools.partial(next, itertools.count(1.0)))
    settings = {"total_steps": 1_000_000, "time_limit": 2, "validate_every": 1_000_000, "log_every": 1}
    run = train(1, tmp_path / "run", stop_at=2, **settings)
    lines = [line for line in progress(run) if "learning rate" in line]
    assert len(lines) == 2
    train(1, run, **settings)
    lines = [line for line in progress(run) if "learning rate" in line]
    rates = [line["learning rate"] for line in lines]
    assert 20 < len(rates) < 120 and rates[-1] < 0.01 * max(rates)
    (last,) = [path for path in runs.checkpoints(run) if runs.read_meta(path)["step"] == lines[-1]["step"]]
    assert runs.read_meta(last)["mel"] > 0 and 120 <= torch.load(last / "clock.ckpt")["seconds"] < 130
    # There is nothing left to do.
    train(1, run, **settings)
    assert progress(run)[-1]["step"] == lines[-1]["step"]


def test_a_stage_2_run_goes_on_without_the_folder_it_came_from(train, material, tmp_path, monkeypatch):
    settings = {"total_steps": 3, "validate_every": 3, "ckpt_interval_steps": 1}
    first = train(1, tmp_path / "stage1", total_steps=1, adversarial_from=9, ckpt_interval_steps=0)
    whole = train(2, tmp_path / "whole", start=first, **settings)
    output = tmp_path / "stage2"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        train(2, output, code=130, start=first, **settings)
    first.rename(tmp_path / "elsewhere")
    train(2, output, start=first, **settings)
    assert equal(final_state(output, 3), final_state(whole, 3))


# Failing while it trains ----------------------------------------------------------------------------------------------


def test_many_gradients_that_are_not_finite_stop_the_run(train, tmp_path, capsys):
    output = tmp_path / "run"
    settings = {"lr": 1e30, "warmup_steps": 0, "adversarial_from": 9, "most_skipped": 3, "ckpt_interval_steps": 1}
    train(1, output, code=1, **settings)
    out, err = capsys.readouterr()
    assert "step 2: the gradients of generator were not finite; the step was skipped (2 so far)" in out
    last = runs.checkpoints(output)[-1]
    assert err.strip().splitlines()[-1] == (
        "train.py: error: the gradients of generator were not finite in 3 batches in a row, up to step 3; "
        f"the last good checkpoint is {last}"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_vanish_stop_the_run_in_one_sentence(train, script, material, tmp_path, monkeypatch, capsys, workers):
    monkeypatch.setattr(script.data, "check_data", lambda crops: None)
    (tmp_path / "list.txt").write_text("gone.wav\nlost.wav\nmissing.wav\n")
    train(1, tmp_path / "run", code=1, train=tmp_path / "list.txt", num_workers=workers)
    error = capsys.readouterr().err
    line = next(line for line in error.splitlines() if "error: " in line)
    assert line.startswith("train.py: error: 100 utterances in a row could not be read, the last one because: ")
    assert line.endswith("; there is no checkpoint yet") and "Traceback" not in error


def test_what_one_process_alone_lacks_is_said_by_it(train, script, material, tmp_path, monkeypatch, capsys):
    def vanished(brain):
        monkeypatch.setenv("LOCAL_RANK", "3")
        monkeypatch.setattr("wavcube_plugins.speechbrain.recipes.command.get_rank", lambda: 3)
        raise script.data.DataError("gone.wav: no such file")

    monkeypatch.setattr(script.PretrainingBrain, "train", vanished)
    train(1, tmp_path / "run", code=1)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == "train.py: error in process 3: gone.wav: no such file; there is no checkpoint yet"


@pytest.mark.parametrize("part", ["training.ckpt", "model.ckpt", "discriminators.ckpt"])
def test_a_damaged_checkpoint_is_one_sentence(train, alone, tmp_path, capsys, part):
    shutil.copytree(alone, tmp_path / "run")
    (runs.checkpoints(tmp_path / "run")[-1] / part).write_bytes(b"")
    train(1, tmp_path / "run", code=1, total_steps=9)
    error = capsys.readouterr().err
    assert f"train.py: error: {tmp_path}/run/save: holds checkpoints that do not fit these settings and data" in error
    assert "Traceback" not in error


def test_metrics_of_the_main_process_wait_for_no_other(train, script, tmp_path, monkeypatch):
    # What SpeechBrain loads for a metric would wait for all processes, of which one alone reports.
    from speechbrain.utils import distributed

    depths = []
    reported = script.Report.validation

    def validation(*arguments):
        depths.append(distributed.MAIN_PROC_ONLY)
        return reported(*arguments)

    monkeypatch.setattr(script.Report, "validation", validation)
    train(1, tmp_path / "run", total_steps=1, validate_every=1, adversarial_from="never", ckpt_interval_steps=0)
    assert depths == [1] and distributed.MAIN_PROC_ONLY == 0


# Settings that change on the way --------------------------------------------------------------------------------------


def test_settings_that_change_on_the_way_stay_on_record(train, alone, tmp_path, capsys):
    shutil.copytree(alone, tmp_path / "run")
    train(1, tmp_path / "run", total_steps=9, lr=5e-5, log_every=1)
    out = capsys.readouterr().out
    assert "the run goes on with lr 5e-05 (0.0001 before), total_steps 9 (8 before)" in out
    description = runs.read_run(tmp_path / "run")
    assert description["settings"]["lr"] == 5e-5 and description["settings"]["log_every"] == 1
    assert description["settings"]["processes"] == 1 and description["settings"]["utterances"] == 11
    assert description["earlier"] == [{"until": 8, "settings": {"lr": 1e-4, "total_steps": 8}}]
    train(1, tmp_path / "run", total_steps=9, lr=5e-5, log_every=2)  # the same again is no change
    assert runs.read_run(tmp_path / "run")["earlier"] == description["earlier"]


# Bad input ------------------------------------------------------------------------------------------------------------

BAD = {
    "unknown setting": ({"batchsize": 3}, "there is no setting 'batchsize'"),
    "unknown preset": ({"preset": "huge"}, "unknown preset 'huge'"),
    "unknown size": ({"size": "huge"}, "unknown preset 'huge'; choose one of wavcube"),
    "no speech": ({"train": ...}, "name the speech to train on: --train FOLDER_OR_MANIFEST"),
    "missing speech": ({"train": "nowhere"}, "nowhere: not readable as a manifest, no such file or directory"),
    "missing validation": ({"valid": "nowhere"}, "nowhere: not readable as a manifest"),
    "speech by number": ({"train": 2024}, "train must be text, got 2024"),
    "empty folder": ({"train": "empty"}, "empty: no audio files in this folder"),
    "empty manifest": ({"train": "empty.jsonl"}, "empty.jsonl: this manifest lists nothing"),
    "compressed manifest": ({"train": "cuts.jsonl.gz"}, "unpack it first: gunzip --keep cuts.jsonl.gz"),
    "every file fails": ({"train": "bad.txt"}, "can be read; the first because: "),
    "missing root": ({"root": "nowhere"}, "--root nowhere: no such folder"),
    "one utterance": ({"train": "one.txt"}, "there is only one utterance; give others to validate on with --valid"),
    "missing backbone": ({"backbone": "wavlm_huge"}, "wavlm_huge: no such file or folder; the known backbones are"),
    "no backbone": ({"backbone": "null"}, "stage 1 needs a --backbone, or a run or checkpoint to --start from"),
    "foreign backbone": ({"backbone": "empty.jsonl"}, "empty.jsonl: "),
    "missing start": ({"start": "nowhere"}, "nowhere: no such run, checkpoint or model folder to start from"),
    "start without a run": ({"start": "empty"}, "empty: expected model.safetensors with config.json"),
    "start from stage 2": ({"start": GOLDEN / "official_stage2.ckpt"}, "is of stage 2, which stage 1 cannot go on"),
    "batch of none": ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    "half a batch": ({"batch_size": 1.5}, "batch_size must be a whole number of at least 1, got 1.5"),
    "no steps": ({"total_steps": 0}, "total_steps must be a whole number of at least 1, got 0"),
    "text for a number": ({"lr": "fast"}, "lr must be a number of at least 0.0, got 'fast'"),
    "setting without value": ({"lr": ""}, "lr must be a number of at least 0.0, got None"),
    "negative weight": ({"mel_weight": -1}, "mel_weight must be a number of at least 0.0, got -1"),
    "no crop": ({"crop_seconds": 0}, "crop_seconds must be a number of at least 0.1, got 0"),
    "text for a switch": ({"checkpointing": "often"}, "checkpointing must be True or False, got 'often'"),
    "beta of 1": ({"beta2": 1}, "beta2 must be below 1, got 1"),
    "mel windows": ({"mel_windows": 1024}, "mel_windows must be a list of lengths in samples, got 1024"),
    "bottleneck": ({"bottleneck": "vqvae"}, "kind must be one of ae, vae, sigma_vae, got 'vqvae'"),
    "frame rate": ({"frame_rate": 75}, "frame_rate must be 50 or 25, got 75"),
    "WavLM layer": ({"wavlm_layer": 99}, "wavlm_layer must lie in -1 … 4, got 99"),
    "missing GPU": ({"device": "cuda:99"}, "--device cuda:99: not available here, "),
    "unknown device": ({"device": "toaster"}, "--device toaster: not available here, "),
    "unknown precision": ({"precision": "fp8"}, "argument --precision: invalid choice: 'fp8'"),
    "half precision": ({"precision": "fp16"}, "--precision fp16 is not supported; use bf16"),
    "SpeechBrain's clipping": ({"max_grad_norm": 1}, "--max_grad_norm has no effect here; use --max_gradient_norm"),
    "precision of validation": ({"eval_precision": "bf16"}, "--eval_precision has no effect here; validation has the"),
    "bottleneck of a start": (
        {"start": "empty", "bottleneck": "vae"},
        "--bottleneck has no effect on what --start brings with it; leave out one of the two",
    ),
    "discriminators some time": ({"adversarial_from": "soon"}, "adversarial_from must be a whole number of at least 0"),
    "two intervals": ({"ckpt_interval_minutes": 1}, "give either --ckpt_interval_steps or --ckpt_interval_minutes"),
    "folder below a file": ({"output_folder": "empty.jsonl/run"}, "empty.jsonl/run: not a directory"),
    "output is a file": ({"output_folder": "empty.jsonl"}, "empty.jsonl: "),
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch, material):
    """The current folder, with manifests of no use."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty.jsonl").touch()
    Path("cuts.jsonl.gz").touch()
    Path("bad.txt").write_text("a.wav\nb.wav\nc.wav\n")
    Path("one.txt").write_text(f"{material}/speech/00.flac\n")
    return tmp_path


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(train, here, capsys, case):
    settings, reason = BAD[case]
    before = set(here.rglob("*"))
    train(1, **{"output": "out", "code": 2, **{k: v for k, v in settings.items() if k != "output_folder"}}
          | ({"output": settings["output_folder"]} if "output_folder" in settings else {}))  # fmt: skip
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ") and error.count("\n") == 1
    assert reason in error and "[Errno" not in error
    assert set(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such file; the hyperparameter file comes first"),
        (["empty"], "empty: is a folder; the hyperparameter file comes first"),
        (["--train", "speech"], "speech: no such file; the hyperparameter file comes first"),
        (["bad.txt", "--train", "speech"], "bad.txt: not a file of settings for train.py"),
        (["empty.jsonl", "--train", "speech"], "empty.jsonl: not a file of settings for train.py"),
        (["broken.yaml", "--train", "speech"], "broken.yaml: not a file of settings for train.py"),
        ([SCRIPTS / "stage1.yaml", "speech"], "found 'speech' without a --setting that takes it"),
        ([SCRIPTS / "stage1.yaml", "--compile", "True", "--seed", "3"], "found 'True' without a --setting"),
        ([SCRIPTS / "stage1.yaml", "--train", "[a, b"], "without a --setting that takes it"),
        ([SCRIPTS / "stage2.yaml", "--train", "one.txt", "--start", "null"], "name its run, or a public checkpoint"),
        ([SCRIPTS / "stage2.yaml", "--train", "one.txt"], "results/wavcube/stage1: no such run, checkpoint or model"),
        ([SCRIPTS / "stage1.yaml", "--train", "one.txt", "--stage", "3"], "stage must be 1 or 2, got 3"),
        ([SCRIPTS / "stage2.yaml", "--size", "tiny"], "there is no setting 'size'"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_2(script, here, capsys, words, reason):
    Path("broken.yaml").write_text("stage: [1\n")
    assert script.main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ") and error.count("\n") == 1
    assert reason in error


def test_a_folder_belongs_to_one_run(train, alone, capsys):
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("*")}
    for stage, settings, reason in (
        (2, {"start": alone}, f"{alone}: holds a run with stage 1, and not 2; choose another --output_folder"),
        (1, {"latent_dim": 8}, f"{alone}: holds a run with latent_dim None, and not 8; "),
        (1, {"size": "nano"}, f"{alone}: holds a run with size tiny, and not nano; "),
        (1, {"seed": 7}, f"{alone}: holds a run with seed 0, and not 7; "),
        (1, {"backbone": "wavlm_base"}, "/encoder, and not wavlm_base; "),
        (1, {"init_adapters": False}, f"{alone}: holds a run with init_adapters True, and not False; "),
    ):
        train(stage, alone, code=2, **settings)
        assert reason in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in alone.rglob("*")}


def test_several_processes_complain_once(train, here, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    train(1, "out", code=2, batch_size=0)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first one of another machine, where a folder may be missing
    train(1, "out", code=2, batch_size=0, distributed_backend="gloo")
    assert capsys.readouterr().err.startswith("train.py: error in process 1: batch_size must be")
    monkeypatch.setenv("RANK", "0")
    if not torch.cuda.is_available():
        train(1, "out", code=2)
        assert "several processes without GPUs need --device cpu --distributed_backend gloo" in capsys.readouterr().err


def test_help(script, capsys):
    for words in ([], ["--help"]):
        assert script.main(words) == 0
        assert "usage: python train.py stage1.yaml --train SPEECH" in capsys.readouterr().out


# The settings ---------------------------------------------------------------------------------------------------------


def read(script, stage, **settings):
    arguments = [str(SCRIPTS / f"stage{stage}.yaml"), "--train", "speech"]
    return script.read_settings(arguments + [word for k, v in settings.items() for word in (f"--{k}", str(v))])[0]


def test_start_reaches_the_script_through_torchrun():
    # torchrun has options of its own that begin so; README's commands put `--` before the script.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "--"]
    settings = {"preset": "nano", "train": SCRIPTS, "start": "nowhere", "device": "cpu", "distributed_backend": "gloo"}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [*torchrun, str(SCRIPTS / "train.py"), str(SCRIPTS / "stage2.yaml"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "train.py: error: nowhere: no such run" in done.stderr


def plain(stage):
    return yaml.safe_load((SCRIPTS / f"stage{stage}.yaml").read_text())


@pytest.mark.parametrize("weights", ["[1]", "[1, 0]", "[1, x]", "3"])
def test_weights_of_sources_are_one_positive_number_each(script, weights):
    with pytest.raises(ValueError, match="train_weights must have one positive number"):
        read(script, 1, train="[one, another]", train_weights=weights)


@pytest.mark.parametrize("stage", [1, 2])
def test_every_preset_loads(script, stage):
    presets = plain(stage)["presets"]
    assert set(presets) == {"wavcube", "wavcube_pro", "nano"}
    for name, changes in presets.items():
        settings = read(script, stage, preset=name)
        assert {key: settings[key] for key in changes} == changes
        assert settings["stage"] == stage and settings["preset"] == name
        # What is given on the command line stands above the preset.
        assert read(script, stage, preset=name, total_steps=7)["total_steps"] == 7
    folders = [read(script, stage, preset=name)["output_folder"] for name in presets]
    assert len(set(folders)) == 3
    if stage == 2:
        assert read(script, 2)["start"] == read(script, 1)["output_folder"]
        for name in presets:
            assert read(script, 2, preset=name)["start"] == read(script, 1, preset=name)["output_folder"]


def test_the_two_stages_differ_only_where_they_must(script):
    first, second = plain(1), plain(2)
    differing = {key for key in first if key in second and first[key] != second[key]}
    assert differing == {"stage", "presets", "output_folder", "batch_size", "backbone", "start"}
    model = {"size", "init_adapters", "bottleneck", "latent_dim", "frame_rate", "wavlm_layer"}
    assert first.keys() - second.keys() == model and second.keys() <= first.keys()
    for name in ("wavcube", "wavcube_pro", "nano"):
        own = {"size", "backbone", "start", "output_folder"}
        if name == "nano":  # reconstruction takes longer to learn than the bottleneck
            own |= {"warmup_steps", "total_steps", "lr", "phase_weight"}
        a, b = (settings["presets"][name] for settings in (first, second))
        assert {k: v for k, v in a.items() if k not in own} == {k: v for k, v in b.items() if k not in own}
    assert (first["batch_size"], second["batch_size"]) == (14, 8)  # the paper's
    assert first["crop_seconds"] == 10 and first["total_steps"] == 500_000 and first["warmup_steps"] == 5_000


@pytest.mark.parametrize("stage", [1, 2])
def test_weights_of_the_losses_are_the_stages_own_unless_given(train, script, material, alone, tmp_path, stage):
    settings = read(script, stage, **({} if stage == 2 else {"size": "tiny"}))
    start = runs.start_from(alone, stage, discriminator_width=0.02)
    crops, beginnings = script.read_data({**settings, "train": str(material / "speech")}, 16000)
    options = script.sb.parse_arguments([str(SCRIPTS / "stage1.yaml"), "--device", "cpu"])[1]

    def weights(**changes):
        folder = {"output_folder": str(tmp_path / "run")}
        brain = script.PretrainingBrain(start, crops, beginnings, {**settings, **folder, **changes}, options)
        brain.init_optimizers()
        brain.report.close()
        return brain.pretraining.weights

    assert weights() == STAGE_WEIGHTS[stage]
    assert weights(adversarial_from="never").adversarial_from == float("inf")
    changed = weights(mel_weight=3.0, adversarial_from=17, semantic_weight=0)
    assert (changed.mel, changed.adversarial_from, changed.semantic) == (3.0, 17, 0)
    assert changed.adversarial == STAGE_WEIGHTS[stage].adversarial


def test_numbers_may_be_written_with_an_exponent(script):
    settings = read(script, 1, lr="1e-4", weight_decay="1E-2", crop_seconds=3)
    assert (settings["lr"], settings["weight_decay"], settings["crop_seconds"]) == (1e-4, 1e-2, 3)


def test_several_sources_may_be_given(script):
    assert read(script, 1, train="[one, another.jsonl]")["train"] == ["one", "another.jsonl"]


def test_steps_between_checkpoints_replace_the_minutes(script):
    assert read(script, 1)["ckpt_interval_minutes"] == 15
    assert read(script, 1, ckpt_interval_steps=10)["ckpt_interval_minutes"] == 0
