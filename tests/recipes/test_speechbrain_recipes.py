"""The SpeechBrain recipes: what they learn, how they go on after a stop, what they write, and what bad input gets."""

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
import warnings
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from helpers.paths import ROOT

from wavcube_plugins import WavCubeConfig
from wavcube_plugins.audio import read_audio, write_audio
from wavcube_plugins.errors import InputError
from wavcube_plugins.synthetic.mini import make_mini, read_mini

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchaudio and SpeechBrain about each other's age
    from speechbrain.inference.ASR import EncoderASR
    from speechbrain.inference.classifiers import EncoderClassifier
    from speechbrain.inference.enhancement import WaveformEnhancement
    from speechbrain.inference.speaker import SpeakerRecognition

    from wavcube_plugins.speechbrain import (
        SpeechSeparator,
        SpokenLanguage,
        VoiceConversion,
        WavCube,
        WavCubeCodec,
        corpora,
    )
    from wavcube_plugins.speechbrain.recipes.brain import RecipeBrain
    from wavcube_plugins.speechbrain.recipes.classification import verification_scores
    from wavcube_plugins.speechbrain.recipes.command import run
    from wavcube_plugins.speechbrain.recipes.export import lobe_yaml
    from wavcube_plugins.speechbrain.recipes.settings import read_settings

HPARAMS = ROOT / "speechbrain_hparams"
CPU = {"device": "cpu"}

# Every recipe with the mini task it takes, and sizes that train in seconds.
RECIPES = {
    "asr_ctc/train": ("read", {"dim": 96, "layers": 1}),
    "speaker_id/train": ("read", {"dim": 32, "embedding_dim": 16}),
    "speaker_id/verification": ("verification", {"dim": 32, "embedding_dim": 16}),
    "emotion/train": ("emotion", {"dim": 32, "embedding_dim": 16}),
    "slu/train": ("commands", {"dim": 64, "layers": 1}),
    "enhance/train": ("noisy", {"dim": 96, "layers": 2}),
    "separate/train": ("mixture", {"dim": 96, "layers": 2}),
    "voice_conversion/train": ("read", {"dim": 64, "layers": 2}),
    "vocoder/train": ("read", {"discriminator_width": 0.02, "crop_seconds": 0.4}),
}
SIZES = {
    "read": {"train": 12, "valid": 3, "test": 3},
    "verification": {"train": 12, "test": 16},
    "emotion": {"train": 12, "valid": 10, "test": 10},
    "commands": {"train": 12, "valid": 4, "test": 4},
    "noisy": {"train": 8, "valid": 2, "test": 2},
    "mixture": {"train": 6, "valid": 2, "test": 2},
}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:torchaudio._backend:UserWarning", "ignore:std\\(\\)"),
]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """Folders of mini speech by task; three speakers where that can be chosen."""
    root = tmp_path_factory.mktemp("mini")

    @functools.cache
    def folder(task):
        make_mini(root / task, task, SIZES[task], speakers=None if task == "emotion" else 3, progress=False)
        return root / task

    return folder


@functools.cache
def script(task):
    """A train.py as a module."""
    spec = importlib.util.spec_from_file_location(f"{task}_train", HPARAMS / task / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(HPARAMS / task))  # as Python does it for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(HPARAMS / task))
    return module


@functools.cache
def inference():
    """infer.py as a module."""
    spec = importlib.util.spec_from_file_location("recipe_inference", HPARAMS / "infer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(name, output, folders, **settings):
    """The arguments of a train.py, after its own name."""
    task, small = RECIPES[name]
    speakers = None if task == "emotion" else 3
    data = {"task": task, "sizes": SIZES[task], "speakers": speakers, "seed": 0}
    data = json.dumps(data)
    settings = {
        "mini": True,
        "mini_folder": folders(task),
        "mini_data": data,
        "output_folder": output,
        **small,
        **settings,
    }
    settings = {"device": "cpu", **settings}
    pairs = [(f"--{key}", str(value)) for key, value in settings.items() if value is not ...]
    task, _, file = name.partition("/")
    return [str(HPARAMS / task / "hparams" / f"{file}.yaml"), *(word for pair in pairs for word in pair)]


@pytest.fixture
def train(mini):
    """Runs a train.py in this process; SpeechBrain's changes to logging are undone."""

    def train_py(name, output, *more, code=0, **settings):
        handlers, level, hook = logging.root.handlers[:], logging.root.level, sys.excepthook
        module = script(name.split("/")[0])
        try:
            status = run(module.main, module.__file__, [*words(name, output, mini, **settings), *more])
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            sys.excepthook = hook
        assert status == code
        folder = output / "debug" if "--debug" in more else output
        return json.loads((folder / "results.json").read_text()) if code == 0 else None

    return train_py


def launch(name, output, mini, processes=1, **settings):
    """Start train.py as a user does."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        settings["distributed_backend"] = "gloo"
    path = HPARAMS / name.split("/")[0] / "train.py"
    return subprocess.Popen(
        [*start, str(path), *words(name, output, mini, **settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def weights(output, name):
    """The weights of the last checkpoint."""
    last = max(
        (output / "save").glob("CKPT*"), key=lambda path: yaml.safe_load((path / "CKPT.yaml").read_text())["unixtime"]
    )
    return torch.load(last / f"{name}.ckpt", weights_only=True)


# What they learn ------------------------------------------------------------------------------------------------------


def test_recognition_learns_its_sentences_and_transcribes_files(train, capsys, tmp_path):
    manifests = tmp_path / "manifests"
    corpora.prepare_mini(tmp_path / "data", manifests, task="read", sizes={"train": 6}, speakers=2, seed=0)
    # What it is to learn chooses the checkpoint too; other sentences would take any, as it knows none of them.
    (manifests / "valid.json").write_text((manifests / "train.json").read_text())
    (manifests / "prepared.json").unlink()
    settings = {"batch_size": 3, "warmup_steps": 10, "lr": 0.01, "dim": 64, "dropout": 0.0, "number_of_epochs": 150}
    settings |= {"mini_folder": tmp_path / "data", "manifests": manifests, "evaluate": "[train]"}
    results = train("asr_ctc/train", tmp_path, **settings)
    assert results["train"]["WER"] < 5 and results["train"]["CER"] < 5
    assert "%WER" in (tmp_path / "wer_train.txt").read_text()
    asr = EncoderASR.from_hparams(str(tmp_path / "inference"), run_opts=CPU)
    records = read_mini(tmp_path / "data", "train")
    right = sum(asr.transcribe_file(str(tmp_path / "data" / one["path"])) == one["text"] for one in records)
    assert right >= 5
    capsys.readouterr()
    path = str(tmp_path / "data" / records[0]["path"])
    assert inference().main([str(tmp_path / "inference"), path]) == 0
    assert capsys.readouterr().out == f"{path}: {asr.transcribe_file(path)}\n"
    # In a batch with padding each says what it says alone.
    wavs = [read_audio(tmp_path / "data" / record["path"]) for record in records[:3]]
    longest = max(map(len, wavs))
    batch = torch.stack([torch.nn.functional.pad(wav, (0, longest - len(wav))) for wav in wavs])
    together, _ = asr.transcribe_batch(batch, torch.tensor([len(wav) / longest for wav in wavs]))
    assert together == [asr.transcribe_batch(wav[None], torch.ones(1))[0][0] for wav in wavs]


def test_enhancement_is_better_than_the_noisy_input(train, mini, tmp_path):
    results = train(
        "enhance/train", tmp_path, number_of_epochs=25, batch_size=4, warmup_steps=5, lr=0.002, evaluate="[train, test]"
    )
    scores = results["train"]
    assert scores["si_sdr_masks"] > scores["si_sdr_input"] + 3
    assert results["test"]["si_sdr_masks"] > results["test"]["si_sdr_input"]
    assert scores["stoi_latents"] > 0.2 and scores["stoi_ceiling"] > scores["stoi_latents"]
    examples = {path.name for path in (tmp_path / "examples" / "train").iterdir()}
    assert {"noisy-train-00000.masks1.wav", "noisy-train-00000.latents1.wav"} <= examples
    # SpeechBrain's own interface hears what the test heard.
    noisy = mini("noisy") / "train" / "noisy-train-00000.wav"
    enhancer = WaveformEnhancement.from_hparams(str(tmp_path / "inference"), run_opts=CPU)
    clean = enhancer.enhance_file(str(noisy), str(tmp_path / "clean.wav"))
    heard = read_audio(tmp_path / "examples" / "train" / "noisy-train-00000.masks1.wav")
    assert clean.shape == heard.shape
    torch.testing.assert_close(clean.cpu(), heard, rtol=0, atol=2e-3)  # the cached latents have 16 bits
    # And so does the command, which can decode the mapped latent too.
    command = [str(tmp_path / "inference"), str(noisy), "--output"]
    assert inference().main([*command, str(tmp_path / "again.wav")]) == 0
    torch.testing.assert_close(read_audio(tmp_path / "again.wav"), clean.cpu(), rtol=0, atol=1e-3)
    assert inference().main([*command, str(tmp_path / "decoded.wav"), "--decode"]) == 0
    assert not torch.allclose(read_audio(tmp_path / "decoded.wav"), clean.cpu(), atol=0.01)


def test_separation_improves_on_the_mixture(train, mini, tmp_path):
    results = train(
        "separate/train", tmp_path, number_of_epochs=90, batch_size=3, warmup_steps=5, lr=0.002, evaluate="[train]"
    )
    scores = results["train"]
    assert scores["si_sdr_improvement_masks"] > 2
    assert scores["stoi_masks"] > scores["stoi_input"]
    separator = SpeechSeparator.from_hparams(str(tmp_path / "inference"), run_opts=CPU)
    mixture = mini("mixture") / "train" / "mixture-train-00000.wav"
    sources = separator.separate_file(mixture, tmp_path / "out.wav")
    assert sources.shape == (2, len(read_audio(mixture)))
    assert (tmp_path / "out_1.wav").is_file() and (tmp_path / "out_2.wav").is_file()


def test_speakers_are_told_apart(train, mini, tmp_path):
    results = train("speaker_id/train", tmp_path, number_of_epochs=15, batch_size=4, warmup_steps=3, lr=0.004)
    assert results["train"]["accuracy"] > 95
    folder = str(tmp_path / "inference")
    classifier = EncoderClassifier.from_hparams(folder, run_opts=CPU)
    record = read_mini(mini("read"), "train")[1]
    path = str(mini("read") / record["path"])
    classifier.hparams.label_encoder.ignore_len()
    log_probabilities, _, _, names = classifier.classify_file(path)
    assert names == [record["speaker"]]
    torch.testing.assert_close(log_probabilities.exp().sum(), torch.tensor(1.0))
    verification = SpeakerRecognition.from_hparams(folder, run_opts=CPU)
    same = str(mini("read") / read_mini(mini("read"), "train")[4]["path"])
    other = str(mini("read") / read_mini(mini("read"), "train")[2]["path"])
    assert verification.verify_files(path, same)[0] > verification.verify_files(path, other)[0]


def test_verification_scores_unknown_speakers(train, tmp_path):
    results = train("speaker_id/verification", tmp_path, number_of_epochs=8, batch_size=4, warmup_steps=2, lr=0.004)
    assert set(results) == {"valid", "trials of test"}
    assert 0 <= results["trials of test"]["EER"] <= 100
    trials = json.loads((tmp_path / "manifests" / "trials.json").read_text())
    speakers = {
        name: entry["speaker"] for name, entry in json.loads((tmp_path / "manifests" / "test.json").read_text()).items()
    }
    assert len(trials) == 120 and all(same == (speakers[a] == speakers[b]) for same, a, b in trials)


def test_errors_of_verification_are_speechbrains_and_take_little_memory():
    from speechbrain.utils.metric_stats import EER, minDCF

    scores = verification_scores
    for number in range(20):
        # Few levels, so that many scores are equal.
        same, different = (
            (shift + torch.randn(size)).mul(4).round() / 4 for shift, size in ((1.0, 12 + number), (0.0, 30))
        )
        found = scores(same, different)
        rate, threshold = EER(same, different)
        expected = {"EER": 100 * rate, "minDCF": minDCF(same, different)[0], "threshold": threshold}
        assert found == pytest.approx(expected, abs=1e-5)
    many = scores(torch.randn(200_000) + 2, torch.randn(200_000))
    assert many["EER"] == pytest.approx(15.87, abs=0.5)


def test_understanding_learns_intents(train, mini, tmp_path):
    results = train(
        "slu/train", tmp_path, number_of_epochs=45, batch_size=4, warmup_steps=5, lr=0.006, evaluate="[train]"
    )
    assert results["train"]["intent_accuracy"] > 95
    model = SpokenLanguage.from_hparams(str(tmp_path / "inference"), run_opts=CPU)
    record = read_mini(mini("commands"), "train")[0]
    answer = model.understand_file(mini("commands") / record["path"])
    assert answer["intent"] == record["intent"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_file_of_settings_trains_and_exports(train, mini, name, tmp_path, capsys):
    settings = {"batch_size": 3, "debug_batches": 2, "debug_epochs": 1}
    train(name, tmp_path, "--debug", **settings)
    folder = tmp_path / "debug"
    assert (folder / "hyperparams.yaml").is_file() and (folder / "train_log.txt").read_text().count("epoch") == 1
    assert not list((folder / "save").glob("CKPT*"))  # --debug leaves no checkpoint
    assert str(folder / "inference") in capsys.readouterr().out
    wav = mini("read") / "test" / "read-test-00000.wav"
    if name.startswith("voice"):
        converter = VoiceConversion.from_hparams(str(folder / "inference"), run_opts=CPU)
        converted = converter.convert_file(wav, mini("read") / "test" / "read-test-00001.wav", tmp_path / "out.wav")
        assert converted.shape == read_audio(tmp_path / "out.wav").shape == read_audio(wav).shape
    if name.startswith("vocoder"):
        codec = WavCubeCodec.from_hparams(str(folder / "inference"), run_opts=CPU)
        before = WavCubeCodec.from_hparams("nano", run_opts=CPU)
        assert torch.equal(codec.encode_file(wav), before.encode_file(wav))
        assert not torch.equal(codec.reconstruct_file(wav), before.reconstruct_file(wav))


@pytest.mark.parametrize(
    "options",
    [
        {"token_type": "bpe", "vocab_size": 40},
        {"freeze": False, "cache": False},
        {"features": "hidden_states", "output_all_hiddens": True, "cache": False},
    ],
)
def test_other_ways_to_recognise(train, mini, tmp_path, options):
    train(
        "asr_ctc/train",
        tmp_path,
        "--debug",
        batch_size=3,
        debug_batches=1,
        debug_epochs=1,
        evaluate="[test]",
        **options,
    )
    asr = EncoderASR.from_hparams(str(tmp_path / "debug" / "inference"), run_opts=CPU)
    assert isinstance(asr.transcribe_file(str(mini("read") / "test" / "read-test-00000.wav")), str)
    saved = torch.load(tmp_path / "debug" / "inference" / "encoder.ckpt", weights_only=True)
    assert any(key.startswith("wavcube.") for key in saved) == (options.get("freeze") is False)
    assert ("weighted_sum.weights" in saved) == ("features" in options)


def test_the_cache_is_what_the_lobe_gives(train, mini, tmp_path):
    train("asr_ctc/train", tmp_path, "--debug", batch_size=3, debug_batches=1, debug_epochs=1)
    from wavcube_plugins import load_model

    index = [json.loads(line) for line in (tmp_path / "latents" / "wav" / "index.jsonl").read_text().splitlines()]
    assert len(index) == sum(SIZES["read"].values())
    import numpy as np

    latent = np.load(tmp_path / "latents" / "wav" / index[0]["path"])
    wav = read_audio(index[0]["source"])
    with torch.no_grad():
        expected = load_model("nano").encode(wav[None])[0][0]
    torch.testing.assert_close(torch.from_numpy(latent).float(), expected, rtol=0, atol=5e-3)


# Going on after a stop, and several processes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["asr_ctc/train", "vocoder/train"])
def test_a_killed_run_ends_with_the_weights_of_one_left_alone(mini, train, name, tmp_path):
    settings = {
        "number_of_epochs": 3, "batch_size": 2, "ckpt_interval_steps": 2, "evaluate": "[]", "warmup_steps": 2,
    }  # fmt: skip
    if name.startswith("asr"):
        settings |= {"dim": 16, "dropout": 0.3, "layers": 2}
    else:
        settings |= {"adversarial_from": 4}
    train(name, tmp_path / "whole", **settings)
    process = launch(name, tmp_path / "killed", mini, **settings)
    folder = tmp_path / "killed" / "save"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = [yaml.safe_load(path.read_text()) for path in folder.glob("CKPT*/CKPT.yaml")]
        if any(not meta["end-of-epoch"] for meta in found) and any(meta["end-of-epoch"] for meta in found):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    train(name, tmp_path / "killed", **settings)
    module = "encoder" if name.startswith("asr") else "generator"
    left_alone, resumed = weights(tmp_path / "whole", module), weights(tmp_path / "killed", module)
    assert left_alone.keys() == resumed.keys()
    assert all(torch.equal(left_alone[key], resumed[key]) for key in left_alone)


def test_another_training_in_the_same_folder_is_refused(train, capsys, tmp_path):
    settings = {"number_of_epochs": 1, "batch_size": 6, "evaluate": "[]", "lr": 0.01}
    train("speaker_id/train", tmp_path, **settings)
    before = weights(tmp_path, "embedding_model")
    written = {name: (tmp_path / name).read_bytes() for name in ("results.json", "hyperparams.yaml")}
    for change, message in (
        ({"lr": 0.02}, "was trained with lr 0.01, not 0.02; choose another --output_folder, or remove it"),
        ({"dim": 24}, "was trained with dim 32, not 24"),
        ({"seed": 1}, "was trained with seed 0, not 1"),
        ({"max_grad_norm": 1.0}, "was trained with max_grad_norm 5.0, not 1.0"),
    ):
        train("speaker_id/train", tmp_path, code=2, **settings | change)
        assert f"{tmp_path}: {message}" in complaint(capsys)
    manifest = tmp_path / "manifests" / "train.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps(dict(list(json.loads(text).items())[1:])))
    train("speaker_id/train", tmp_path, code=2, **settings)
    assert f"{tmp_path}: was trained with another train.json" in complaint(capsys)
    manifest.write_text(text)
    train("speaker_id/train", tmp_path, "--debug", **settings | {"lr": 0.02, "debug_batches": 1, "debug_epochs": 1})
    assert all((tmp_path / name).read_bytes() == content for name, content in written.items())
    train("speaker_id/train", tmp_path, **settings | {"number_of_epochs": 2, "valid_batch_size": 1})  # goes on
    after = weights(tmp_path, "embedding_model")
    assert any(not torch.equal(before[key], after[key]) for key in before)
    train("speaker_id/train", tmp_path, code=2, **settings)
    assert "was trained with number_of_epochs 2, not 1" in complaint(capsys)
    (tmp_path / "training.json").unlink()  # as older runs have none
    train("speaker_id/train", tmp_path, code=2, **settings | {"dim": 24})
    assert f"{tmp_path}/save: holds checkpoints that do not fit" in complaint(capsys)


def test_accumulated_gradients_are_not_lost_to_checkpoints(train, capsys, tmp_path, monkeypatch):
    settings = {"number_of_epochs": 1, "batch_size": 2, "evaluate": "[]", "ckpt_interval_steps": 3}
    saved = []
    with monkeypatch.context() as patch:

        def save(brain):
            saved.append((brain.step, brain.optimizer_step))

        patch.setattr(RecipeBrain, "_save_intra_epoch_ckpt", save)
        train("speaker_id/train", tmp_path / "two", grad_accumulation_factor=2, **settings)
    assert saved == [(4, 2)]  # of six batches: what was due after the third waited for the end of the step
    train("speaker_id/train", tmp_path / "seven", code=2, grad_accumulation_factor=7, **settings)
    assert "--grad_accumulation_factor 7 is more than the 6 batches of an epoch" in complaint(capsys)
    train("vocoder/train", tmp_path / "vocoder", code=2, grad_accumulation_factor=2, **settings)
    assert "--grad_accumulation_factor has no effect here; raise --batch_size" in complaint(capsys)


def test_two_processes_train_together(mini, tmp_path):
    process = launch(
        "enhance/train",
        tmp_path,
        mini,
        processes=2,
        number_of_epochs=3,
        batch_size=2,
        warmup_steps=1,
        dim=32,
        evaluate="[]",
    )
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    log = (tmp_path / "train_log.txt").read_text().splitlines()
    losses = [float(line.split("train loss: ")[1].split(" ")[0]) for line in log]
    assert len(losses) == 3 and losses[-1] < losses[0]
    # Both processes shared the work of the cache: what each noted is there.
    assert len(list((tmp_path / "latents" / "wav" / "parts").glob("ended.*"))) == 2


# What can be wrong ----------------------------------------------------------------------------------------------------


def complaint(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in lines if "error: " in line]
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"lr": "fast"}, "lr must be a number of at least 0, got 'fast'"),
        ({"nonsense": 1}, "there is no setting 'nonsense'"),
        ({"source": "no/such/model.ckpt"}, "no/such/model.ckpt: no such file or folder"),
        ({"mini": False, "data_folder": "no/such/corpus"}, "no/such/corpus: no such folder"),
        ({"mini": False}, "train.json: no such manifest; name a corpus with --data_folder"),
        ({"evaluate": "[tset]"}, "tset.json: no such manifest"),
        ({"token_type": "word"}, "token_type must be one of character, unigram, bpe, got 'word'"),
        ({"token_type": "bpe", "vocab_size": 3}, "sentencepiece: no 3 pieces"),
        ({"freeze": False}, "--cache keeps latents of a frozen model"),
        ({"max_grad_norm": -1}, "--max_grad_norm must be above 0, got -1.0"),
        ({"jit": ...}, "--jit has no effect here"),
        ({"lerning_rate": 5}, "there is no setting 'lerning_rate'"),
        ({"sorting": "shuffled"}, "sorting must be random, ascending or descending, got 'shuffled'"),
        ({"augment": True}, "augment: True changes waveforms, but the latents are cached; drop --cache"),
        ({"device": "quantum"}, "--device quantum: not available here"),
    ],
)
def test_wrong_settings_are_named_in_one_sentence(train, capsys, settings, message, tmp_path):
    more = ["--jit"] if "jit" in settings else []
    train("asr_ctc/train", tmp_path, *more, code=2, **settings)
    assert message in complaint(capsys)


def test_wrong_words_on_the_command_line(capsys, tmp_path):
    module = script("asr_ctc")
    for arguments, message in (
        ([str(tmp_path / "no.yaml")], "no.yaml: no such file"),
        ([str(HPARAMS / "infer.py"), "--mini"], "infer.py: not"),
        ([str(HPARAMS / "asr_ctc" / "hparams" / "train.yaml"), "mini"], "expected --setting value"),
        (["--precision"], "expected one argument"),
    ):
        assert run(module.main, module.__file__, arguments) == 2
        assert message in complaint(capsys)
    assert run(module.main, module.__file__, ["--help"]) == 0
    assert "--mini" in capsys.readouterr().out
    # The name of earlier releases still works, for as far as this goes.
    assert run(module.main, module.__file__, [str(HPARAMS / "asr_ctc" / "train.yaml"), "--nonsense", "1"]) == 2
    said = capsys.readouterr().err
    assert "train.yaml is now" in said and "there is no setting 'nonsense'" in said


@pytest.fixture
def own(mini, tmp_path):
    """Manifests of one's own, in a folder that may be spoilt, with speech that may be too."""
    shutil.copytree(mini("read"), tmp_path / "speech")
    folder = tmp_path / "own"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        entries = {
            record["id"]: {"wav": str(tmp_path / "speech" / record["path"]), "text": record["text"], "duration": 1.0}
            for record in read_mini(tmp_path / "speech", split)
        }
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return folder


def spoil_manifest(folder, text):
    (folder / "train.json").write_text(text)


def first_file(folder):
    entries = json.loads((folder / "train.json").read_text())
    return Path(next(iter(entries.values()))["wav"])


SPOILT = {
    "empty": (lambda folder: spoil_manifest(folder, "{}"), "train.json: this manifest is empty"),
    "not json": (lambda folder: spoil_manifest(folder, "{oh"), "train.json: is not JSON"),
    "no words": (
        lambda folder: spoil_manifest(folder, '{"a": {"wav": "a.wav", "text": null}}'),
        "train.json: 'text' of the entry 'a' must be text, got None",
    ),
    "no text": (lambda folder: spoil_manifest(folder, '{"a": {"wav": "a.wav"}}'), "the entry 'a' has no 'text'"),
    "missing": (lambda folder: first_file(folder).unlink(), "read-train-00000.wav: no such file"),
    "corrupt": (
        lambda folder: first_file(folder).write_bytes(b"RIFFxxxx"),
        "read-train-00000.wav: not readable as audio",
    ),
    "other rate": (
        lambda folder: write_audio(first_file(folder), 0.1 * torch.randn(4000), 8000),
        "read-train-00000.wav: has a sample rate of 8000 Hz, but the model takes 16000 Hz; --resample True converts it",
    ),
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_data_is_named_in_one_sentence(train, capsys, own, tmp_path, kind, cache):
    spoil, message = SPOILT[kind]
    spoil(own)
    settings = {
        "mini": False,
        "manifests": own,
        "cache": cache,
        "source": "nano",
        "num_workers": 0,
        "evaluate": "[test]",
    }
    train("asr_ctc/train", tmp_path / "run", code=2, number_of_epochs=1, batch_size=2, **settings)
    assert message in complaint(capsys)


def test_what_one_process_alone_finds_it_says(train, capsys, own, tmp_path, monkeypatch):
    from wavcube_plugins.speechbrain.recipes import command

    def elsewhere(*arguments, complain=command.complain, **options):
        with monkeypatch.context() as patch:
            patch.setenv("LOCAL_RANK", "1")
            complain(*arguments, **options)

    monkeypatch.setattr(command, "complain", elsewhere)
    settings = {"mini": False, "manifests": own, "cache": False, "source": "nano", "num_workers": 0}
    settings |= {"number_of_epochs": 1, "batch_size": 2}
    train("asr_ctc/train", tmp_path / "run", code=2, evaluate="[missing]", **settings)
    assert "error" not in capsys.readouterr().err  # all processes find that, and the first one says it
    first_file(own).write_bytes(b"RIFFxxxx")
    train("asr_ctc/train", tmp_path / "run", code=2, evaluate="[]", **settings)
    assert "error in process 1: " in capsys.readouterr().err


def test_manifests_of_ones_own_stay_beside_a_corpus(train, own, tmp_path):
    for path in own.iterdir():
        path.write_text(path.read_text().replace(str(tmp_path / "speech"), "{data_root}"))
    before = {path: path.read_bytes() for path in own.iterdir()}
    settings = {"mini": False, "manifests": own, "data_folder": tmp_path / "speech", "source": "nano", "num_workers": 0}
    settings |= {"batch_size": 2, "debug_batches": 1, "debug_epochs": 1, "evaluate": "[]"}
    train("asr_ctc/train", tmp_path / "run", "--debug", **settings)
    assert {path: path.read_bytes() for path in own.iterdir()} == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda entry: entry["intent"].pop("action"), "needs an 'intent' with text for"),
        (lambda entry: entry.update(slots=[["room"]]), "needs 'slots' such as [[name, words], ...], got [['room']]"),
        (lambda entry: entry.update(intent="lights on"), "must be a mapping, got 'lights on'"),
    ],
)
def test_a_spoilt_command_is_named_in_one_sentence(train, mini, capsys, tmp_path, spoil, message):
    folder = tmp_path / "manifests"
    corpora.prepare_mini(mini("commands"), folder, task="commands", sizes=SIZES["commands"], speakers=3)
    entries = json.loads((folder / "train.json").read_text())
    name = list(entries)[1]
    spoil(entries[name])
    (folder / "train.json").write_text(json.dumps(entries))
    train("slu/train", tmp_path, code=2, cache=False)
    said = complaint(capsys)
    assert f"{folder}/train.json: " in said and repr(name) in said and message in said


@pytest.mark.parametrize("cache", [True, False])
def test_sources_may_be_a_few_samples_longer_or_shorter(train, mini, capsys, tmp_path, cache):
    shutil.copytree(mini("noisy"), tmp_path / "speech")
    settings = {"mini_folder": tmp_path / "speech", "cache": cache, "batch_size": 2, "valid_batch_size": 2}
    settings |= {"debug_batches": 1, "debug_epochs": 1, "evaluate": "[]"}
    one, two = (tmp_path / "speech" / record["clean"] for record in read_mini(tmp_path / "speech", "valid"))
    write_audio(one, read_audio(one)[:-319], 16000)
    write_audio(two, torch.nn.functional.pad(read_audio(two), (0, 319)), 16000)
    train("enhance/train", tmp_path / "near", "--debug", **settings)
    write_audio(two, read_audio(two)[:8000], 16000)
    train("enhance/train", tmp_path / "far", "--debug", code=2, **settings)
    said = complaint(capsys)
    assert "valid.json: 'clean' of the entry 'noisy-valid-00001' has 8000 samples, but 'wav' has" in said


def test_spoilt_data_found_by_a_worker_is_named_too(train, capsys, own, tmp_path):
    spoil, message = SPOILT["corrupt"]
    spoil(own)
    settings = {"mini": False, "manifests": own, "cache": False, "source": "nano", "num_workers": 1, "evaluate": "[]"}
    train("asr_ctc/train", tmp_path / "run", code=2, number_of_epochs=1, batch_size=2, **settings)
    assert message in complaint(capsys)


def test_other_rates_are_converted_on_demand(train, own, tmp_path):
    path = first_file(own)
    write_audio(path, read_audio(path, 8000), 8000)
    settings = {"mini": False, "manifests": own, "cache": True, "source": "nano", "num_workers": 0, "evaluate": "[]"}
    train("asr_ctc/train", tmp_path / "run", number_of_epochs=1, batch_size=4, resample=True, **settings)
    assert soundfile.info(path).samplerate == 8000


def test_inference_names_what_is_wrong_in_one_sentence(train, mini, capsys, tmp_path):
    train("enhance/train", tmp_path, "--debug", batch_size=3, debug_batches=1, debug_epochs=1, evaluate="[]")
    speech = mini("noisy") / "test" / "noisy-test-00000.wav"
    write_audio(tmp_path / "slow.wav", 0.1 * torch.randn(4000), 8000)
    (tmp_path / "broken.wav").write_bytes(b"RIFFxxxx")
    folder = str(tmp_path / "debug" / "inference")
    (tmp_path / "asr").mkdir()
    (tmp_path / "asr" / "hyperparams.yaml").write_text("modules:\n    encoder: !ref <encoder>\npretrainer: null\n")
    namesake = str(mini("noisy") / "other" / speech.name)
    capsys.readouterr()
    for arguments, message in (
        ([str(tmp_path / "no"), str(speech)], "no: no such folder"),
        ([str(tmp_path / "asr"), str(speech), "--decode"], "--decode is for enhancement and separation, and"),
        (
            [folder, str(speech), namesake, "--output", str(tmp_path / "out")],
            "noisy-test-00000.clean.wav; run them one",
        ),
        ([str(tmp_path / "debug"), str(speech)], "has no 'pretrainer'; name the folder `inference`"),
        ([folder, str(tmp_path / "missing.wav")], "missing.wav: no such file"),
        ([folder, str(tmp_path / "broken.wav")], "broken.wav: not readable as audio"),
        ([folder, str(tmp_path / "slow.wav")], "slow.wav: has a sample rate of 8000 Hz, but the model takes 16000 Hz"),
        ([folder, str(speech), "--output", "out.txt"], "out.txt"),
    ):
        assert inference().main(arguments) == 2
        assert message in complaint(capsys)
    assert inference().main([folder, str(tmp_path / "slow.wav"), "--resample"]) == 0
    assert (tmp_path / "slow.clean.wav").is_file()
    # A bad file does not keep the others from being done.
    files = [str(tmp_path / "broken.wav"), str(speech)]
    assert inference().main([folder, *files, "--output", str(tmp_path)]) == 1
    assert "broken.wav: not readable as audio" in complaint(capsys)
    assert (tmp_path / f"{speech.stem}.clean.wav").is_file()


def test_a_model_that_diverges_ends_the_run(train, capsys, own, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "ctc_loss", lambda x, *_, **__: x.sum() * float("nan"))
    train("asr_ctc/train", tmp_path / "run", code=1, number_of_epochs=1, batch_size=2, nonfinite_patience=1)
    assert "the losses of 2 batches of an epoch were not finite; lower --lr" in complaint(capsys)


# Settings in view -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_every_file_is_used(name, tmp_path):
    task, _, file = name.partition("/")
    script, path = HPARAMS / task / "train.py", HPARAMS / task / "hparams" / f"{file}.yaml"
    assert read_settings(path, {}, script)["source"] == "wavcube"
    # An edited copy with a misspelt key is refused, unless the script uses the key.
    (tmp_path / "edited.yaml").write_text(path.read_text() + "lerning_rate: 5\n")
    with pytest.raises(InputError, match=r"edited\.yaml: nothing uses the setting 'lerning_rate'"):
        read_settings(tmp_path / "edited.yaml", {}, script)
    (tmp_path / "train.py").write_text(script.read_text() + '\nprint(hparams["lerning_rate"])\n')
    assert read_settings(tmp_path / "edited.yaml", {}, tmp_path / "train.py")["lerning_rate"] == 5


OWN_HEAD = """
import torch


class Head(torch.nn.Linear):
    def __init__(self, in_dim, out_dim, gain):
        super().__init__(in_dim, out_dim)
        self.gain = gain

    def forward(self, features, frames):
        return (self.gain * super().forward(features)).log_softmax(-1)
"""


def test_optimiser_schedule_and_head_are_those_of_the_file(mini, tmp_path, monkeypatch):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "own_head.py").write_text(OWN_HEAD)
    text = (HPARAMS / "asr_ctc" / "hparams" / "train.yaml").read_text()
    before, _, rest = text.partition("dim: 1024")
    after = rest[rest.index("encoder: !new") :]
    text = (
        before + "head: !new:own_head.Head\n   in_dim: !ref <wavcube.output_dim>\n   out_dim: !ref <output_neurons>\n"
    )
    text += "   gain: 2.0\n" + after.replace("   dim: 160\n   dropout: 0.1\n", "")
    text = text.replace("torch.optim.AdamW", "torch.optim.SGD").replace("   betas: [0.9, 0.98]\n", "")
    schedule = "wavcube_plugins.speechbrain.recipes.schedule.WarmupCosine\n   warmup_steps: !ref <warmup_steps>\n"
    assert schedule in text
    noam = (
        "speechbrain.nnet.schedulers.NoamScheduler\n   lr_initial: !ref <lr>\n   n_warmup_steps: !ref <warmup_steps>\n"
    )
    (tmp_path / "edited.yaml").write_text(text.replace(schedule, noam))
    settings = {"number_of_epochs": 1, "batch_size": 4, "evaluate": "[]", "dim": ..., "layers": ...}
    arguments = words("asr_ctc/train", tmp_path / "run", mini, **settings)
    module, handlers = script("asr_ctc"), logging.root.handlers[:]
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "place")
        assert run(module.main, module.__file__, [str(tmp_path / "edited.yaml"), *arguments[1:]]) == 0
    logging.root.handlers[:] = handlers
    saved = max((tmp_path / "run" / "save").glob("CKPT*"))
    assert "momentum" in torch.load(saved / "optimizer.ckpt", weights_only=True)["param_groups"][0]
    assert "n_steps" in torch.load(saved / "lr_annealing.ckpt", weights_only=True)
    folder = tmp_path / "run" / "inference"
    assert (folder / "own_head.py").read_text() == OWN_HEAD and "gain: 2.0" in (folder / "hyperparams.yaml").read_text()
    # Another process finds the copied module, and has nothing to warn about.
    wav = str(mini("read") / "test" / "read-test-00000.wav")
    command = [sys.executable, str(HPARAMS / "infer.py"), str(folder), wav]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.startswith(f"{wav}: "), result.stderr
    assert "expect_len" not in result.stderr


def stop_after_batch(patch, number):
    """Let training end abruptly when a batch begins, after so many others."""
    begin, count = RecipeBrain.on_fit_batch_start, itertools.count(1)

    def stop(brain, *arguments):
        if next(count) > number:
            raise SystemExit
        begin(brain, *arguments)

    patch.setattr(RecipeBrain, "on_fit_batch_start", stop)


@pytest.mark.parametrize(
    "options",
    [
        {"sorting": "descending"},
        {"dynamic_batching": True, "dynamic_batch_sampler": "{max_batch_length: 8, num_buckets: 2}"},
        {"cache": False, "augment": True},
    ],
)
def test_order_dynamic_batches_and_augmentation(train, tmp_path, monkeypatch, options):
    """Each changes the training, and one that was interrupted ends with the weights of one that was not."""
    settings = {"number_of_epochs": 2, "batch_size": 4, "ckpt_interval_steps": 1, "evaluate": "[]", "warmup_steps": 2}
    settings |= {"dim": 16, "layers": 1}
    train("asr_ctc/train", tmp_path / "plain", **settings)
    train("asr_ctc/train", tmp_path / "whole", **settings, **options)
    whole = weights(tmp_path / "whole", "encoder")
    assert any(not torch.equal(whole[key], value) for key, value in weights(tmp_path / "plain", "encoder").items())
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after_batch(patch, 4)
        train("asr_ctc/train", tmp_path / "stopped", **settings, **options)
    train("asr_ctc/train", tmp_path / "stopped", **settings, **options)
    assert all(torch.equal(whole[key], value) for key, value in weights(tmp_path / "stopped", "encoder").items())


def test_exported_files_name_revision_and_sizes():
    lobe = WavCube("tiny")
    lobe.revision, lobe.config = "v2", WavCubeConfig.preset("tiny")
    found = yaml.safe_load(lobe_yaml(lobe, decoder=True).partition("\n")[2])
    assert found["revision"] == "v2" and WavCubeConfig.from_dict(found["config"]) == lobe.config
    assert found["source"] == "tiny" and found["decoder"] is True and found["freeze"] is True
