"""`tts: wavcube_cfm` in ESPnet: training, resuming, checkpoints, and zero-shot inference in Python and by command."""

import functools

import numpy as np
import pytest
import soundfile
import torch
import yaml

from wavcube_plugins.audio import read_audio
from wavcube_plugins.data import kaldi
from wavcube_plugins.espnet import register, run
from wavcube_plugins.espnet.inference import Text2Speech, WavCubeTTSTask
from wavcube_plugins.espnet.tts import WavCubeCFM
from wavcube_plugins.synthetic.mini import make_mini, read_mini

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

register()

from espnet2.bin import tts_inference  # noqa: E402

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
SIZES = "{preset: tiny, dim: 64, num_layers: 2, num_heads: 2, text_dim: 32, time_dim: 32, steps: 4}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six utterances as a data folder with prompts, a token list, and statistics collected by ESPnet."""
    folder = tmp_path_factory.mktemp("tts")
    make_mini(folder / "audio", "read", {"train": 6}, speakers=2, progress=False)
    records = read_mini(folder / "audio", "train")
    tables = {
        "wav.scp": [str(folder / "audio" / record["path"]) for record in records],
        "text": [record["text"] for record in records],
        # Each is prompted with the one before.
        "prompt.scp": [str(folder / "audio" / records[index - 1]["path"]) for index in range(len(records))],
        "prompt_text": [records[index - 1]["text"] for index in range(len(records))],
    }
    for name, values in tables.items():
        lines = (f"{record['id']} {value}\n" for record, value in zip(records, values, strict=True))
        (folder / name).write_text("".join(lines))
    (folder / "tokens.txt").write_text("\n".join(["<blank>", "<unk>", "<space>", *LETTERS, "<sos/eos>"]) + "\n")
    train(folder, folder / "stats", normalize="none", collect_stats="true", shape="wav.scp")
    return folder


def train(corpus, out, *, shape="stats/train/speech_shape", **more):
    values = {
        "token_type": "char",
        "token_list": corpus / "tokens.txt",
        "feats_extract_conf": "model=nano",
        "normalize_conf": f"stats_file={corpus}/stats/train/feats_stats.npz",
        "tts_conf": SIZES,
        "optim": "adamw",
        "optim_conf": "{lr: 2.0e-3, fused: true}",  # writes weights without counting their versions up
        "batch_type": "unsorted",
        "batch_size": 3,
        "num_workers": 0,
        "keep_nbest_models": 2,
        "best_model_criterion": "valid,loss,min",
        "use_tensorboard": "false",
        "use_matplotlib": "false",
        "output_dir": out,
        **more,
    }
    if more.get("normalize") == "none":
        del values["normalize_conf"]
    arguments = [str(part) for name, value in values.items() for part in (f"--{name}", value)]
    for split in ("train", "valid"):
        arguments += [f"--{split}_data_path_and_name_and_type", f"{corpus}/text,text,text"]
        arguments += [f"--{split}_data_path_and_name_and_type", f"{corpus}/wav.scp,speech,sound"]
        arguments += [f"--{split}_shape_file", f"{corpus}/{shape}"]
    WavCubeTTSTask.main(cmd=arguments)


@pytest.fixture(scope="module")
def trained(corpus):
    """A run of six epochs, and one of three that was then continued to six."""
    train(corpus, corpus / "whole", max_epoch=6)
    train(corpus, corpus / "parts", max_epoch=3)
    train(corpus, corpus / "parts", max_epoch=6, resume="true")
    return corpus / "whole"


@pytest.fixture(scope="module")
def text2speech(trained):
    return Text2Speech(train_config=trained / "config.yaml", model_file=trained / "6epoch.pth")


@pytest.fixture
def prompt(corpus):
    table = kaldi.read_table(corpus / "prompt.scp")
    key = next(iter(table))
    return {"prompt_speech": read_audio(table[key]), "prompt_text": kaldi.read_table(corpus / "prompt_text")[key]}


def history(out, split):
    stats = torch.load(out / "checkpoint.pth", weights_only=False)["reporter"]["stats"]
    return [stats[epoch][split]["loss"] for epoch in sorted(stats)]


# Training ----------------------------------------------------------------------------------------------------------


def test_training_learns_and_a_resumed_run_ends_with_the_same_weights(trained, corpus):
    assert history(trained, "train")[-1] < 0.95 * history(trained, "train")[0]
    assert history(trained, "valid")[-1] < history(trained, "valid")[0]
    # Validation has no noise of its own, so both runs report it to the last digit.
    assert history(corpus / "parts", "valid") == pytest.approx(history(trained, "valid"), rel=1e-5)
    whole, parts = (torch.load(out / "6epoch.pth", weights_only=True) for out in (trained, corpus / "parts"))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_checkpoint_holds_the_average_and_nothing_frozen(trained):
    state = torch.load(trained / "6epoch.pth", weights_only=True)
    network = [name for name in state if name.startswith("tts.flow.network.")]
    average = [name.replace(".network.", ".ema.") for name in network]
    assert set(state) - set(network) - set(average) == {
        "normalize.mean", "normalize.std", "tts.flow.ema_steps", "tts.flow.frames_seen", "tts.flow.tokens_seen"
    }  # fmt: skip
    assert int(state["tts.flow.ema_steps"]) == 12  # two batches, six epochs
    assert any((state[name] - state[other]).abs().max() > 1e-4 for name, other in zip(network, average, strict=True))


def test_the_features_are_normalised_by_the_collected_statistics(text2speech, corpus):
    waveforms = [read_audio(path) for path in kaldi.read_table(corpus / "wav.scp").values()]
    latents = torch.cat([text2speech.feats_extract(waveform[None])[0][0] for waveform in waveforms])
    normal = text2speech.normalize(latents[None].clone())[0][0]
    torch.testing.assert_close(normal.mean(0), torch.zeros(32), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.std(0), torch.ones(32), atol=1e-2, rtol=0)


def test_the_loss_is_averaged_by_frames_not_by_batches():
    tts = WavCubeCFM(30, 8, preset="tiny", dim=64, num_layers=1, num_heads=2).eval()
    text, feats = torch.randint(30, (3, 9)), torch.randn(3, 40, 8)
    lengths, counts = torch.tensor([40, 20, 11]), torch.tensor([9, 5, 6])
    whole, stats, weight = tts(text, counts, feats, lengths)
    parts = [tts(text[items], counts[items], feats[items], lengths[items]) for items in ([0, 1], [2])]
    weights = torch.tensor([float(part[2]) for part in parts])
    mean = sum(weight * part[0] for weight, part in zip(weights / weights.sum(), parts, strict=True))
    torch.testing.assert_close(mean, whole)
    assert weight == weights.sum() and stats["loss"] == whole


def test_settings_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="unknown TTS preset 'large'; choose one of base, small, tiny"):
        WavCubeCFM(30, 8, preset="large")
    with pytest.raises(ValueError, match="unknown setting 'layers'"):
        WavCubeCFM(30, 8, preset="tiny", layers=3)
    with pytest.raises(ValueError, match="speed must be positive"):
        WavCubeCFM(30, 8, preset="tiny", speed=0)


# In Python ---------------------------------------------------------------------------------------------------------


def test_espnets_own_class_is_ours(text2speech):
    assert tts_inference.Text2Speech is Text2Speech
    assert text2speech.fs == 16000 and text2speech.frame_rate == 50


def test_plain_synthesis_takes_the_time_training_took(text2speech):
    text = "her brother found a red coat"
    result = text2speech(text, seed=1)
    flow = text2speech.tts.flow
    assert len(result["feat_gen"]) == int(len(text) * int(flow.frames_seen) / int(flow.tokens_seen) + 1e-6)
    assert result["wav"].shape == (320 * len(result["feat_gen"]),)
    assert torch.isfinite(result["wav"]).all() and result["wav"].std() > 1e-4
    faster = text2speech(text, seed=1, speed=2.0)
    assert len(faster["feat_gen"]) == pytest.approx(len(result["feat_gen"]) / 2, abs=1)
    normal = text2speech.normalize(result["feat_gen_denorm"].clone()[None])[0][0]
    torch.testing.assert_close(normal, result["feat_gen"], atol=1e-4, rtol=1e-4)


def test_zero_shot_follows_the_prompts_pace_and_returns_the_new_part(text2speech, prompt):
    text = "the small dog sold an old boat"
    result = text2speech(text, **prompt, seed=3)
    frames = int(text2speech.feats_extract.frame_lengths(torch.tensor([len(prompt["prompt_speech"])])))
    assert len(result["feat_gen"]) == int(frames / len(prompt["prompt_text"]) * len(text))
    again = text2speech(text, **prompt, seed=3)
    assert torch.equal(result["wav"], again["wav"])
    torch.manual_seed(0)
    others = text2speech(text, **prompt), text2speech(text, **prompt, seed=4), text2speech(text, seed=3)
    assert all(
        other["feat_gen"].shape != result["feat_gen"].shape or not torch.equal(other["feat_gen"], result["feat_gen"])
        for other in others
    )
    # numpy, and ESPnet's way of passing options.
    other = text2speech(text, prompt_speech=prompt["prompt_speech"].numpy(), prompt_text=prompt["prompt_text"],
                        decode_conf={"seed": 3, "guidance": 2.0})  # fmt: skip
    torch.testing.assert_close(other["wav"], result["wav"])
    # Features in the place of the waveform.
    latent = text2speech.feats_extract(prompt["prompt_speech"][None])[0][0]
    other = text2speech(text, prompt_speech=latent, prompt_text=prompt["prompt_text"], seed=3)
    torch.testing.assert_close(other["feat_gen"], result["feat_gen"], atol=1e-4, rtol=1e-4)


def test_a_batch_gives_what_each_text_gives_alone(text2speech, prompt):
    texts = ["his friend has a green boat", "up", "a very long sentence about the old river and the new bridge"]
    speech, said = [prompt["prompt_speech"], None, prompt["prompt_speech"]], [prompt["prompt_text"], None] * 2
    results = text2speech.many(texts, speech, said[:3] if said[2] else said, seed=5)
    for text, wave, words, result in zip(texts, speech, said, results, strict=False):
        alone = text2speech(text, prompt_speech=wave, prompt_text=words, seed=5)
        torch.testing.assert_close(result["feat_gen"], alone["feat_gen"], atol=1e-3, rtol=1e-3)


def test_a_long_text_is_cut_and_faded(text2speech, prompt):
    sentence = "the old man at the river sold a boat to her brother and bought a small red house"
    result = text2speech(" ".join([sentence] * 8), **prompt, seed=0, steps=1)
    fades, rest = divmod(320 * len(result["feat_gen"]) - len(result["wav"]), round(0.15 * 16000))
    assert fades >= 1 and rest == 0
    assert len(result["feat_gen"]) <= (fades + 1) * 22 * 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "  "}, "the text is empty"),
        ({"text": "a café in 1999"}, "the model has no token for 'é', '1', '9' in"),
        ({"prompt_text": None}, "the prompt's transcript is missing: give it as prompt_text"),
        ({"prompt_text": " "}, "the prompt's transcript is missing"),
        ({"prompt_speech": None}, "prompt_text is given without prompt_speech"),
        ({"prompt_speech": torch.zeros(1600)}, r"the prompt lasts 0.10 s; it must last 0.3 to 30 s"),
        ({"prompt_speech": torch.zeros(16000 * 31)}, r"the prompt lasts 31.00 s"),
        ({"prompt_speech": torch.zeros(1, 2, 16000)}, r"waveform \(samples,\) or latents \(frames, channels\)"),
        ({"prompt_speech": torch.zeros(16000, dtype=torch.int16)}, "must be floating point in -1 … 1, got torch.int16"),
        ({"prompt_speech": torch.full((16000,), float("nan"))}, "NaN or infinite"),
        ({"speed": -1.0}, "speed must be positive, got -1"),
        ({"speed": 10.0}, "frames are too few for the 23 tokens of 'a red boat on the river'; lower the speed of 10"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"speech": torch.zeros(16000)}, "does not take speech=; it takes text, prompt_speech, prompt_text, steps"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(text2speech, prompt, change, message):
    call = {"text": "a red boat on the river", **prompt, **change}
    with pytest.raises(ValueError, match=message):
        text2speech(**call)


# From the command line ---------------------------------------------------------------------------------------------


def decode(corpus, trained, out, *more, prompts=True):
    names = [("text", "text", "text"), ("wav.scp", "speech", "sound")]
    names += [("prompt_text", "prompt_text", "text"), ("prompt.scp", "prompt_speech", "sound")] if prompts else []
    arguments = ["-m", "espnet2.bin.tts_inference", "--model_file", str(trained / "6epoch.pth")]
    arguments += ["--train_config", str(trained / "config.yaml"), "--output_dir", str(out), "--num_workers", "0"]
    for file, name, kind in names:
        arguments += ["--data_path_and_name_and_type", f"{corpus / file},{name},{kind}"]
    return run.main([*arguments, *more])


def test_the_command_line_does_what_python_does(corpus, trained, text2speech, tmp_path):
    keys = list(kaldi.read_table(corpus / "text"))
    (tmp_path / "keys").write_text(f"{keys[1]}\n{keys[4]}\n")
    options = tmp_path / "decode.yaml"
    options.write_text(yaml.safe_dump({"steps": 2, "guidance": 1.0, "speed": 1.5, "seed": 7}))
    more = ("--key_file", str(tmp_path / "keys"), "--config", str(options))
    assert decode(corpus, trained, tmp_path / "out", *more) == 0
    for key in (keys[1], keys[4]):
        found, rate = soundfile.read(tmp_path / "out" / "wav" / f"{key}.wav", dtype="float32")
        expected = text2speech(
            kaldi.read_table(corpus / "text")[key],
            prompt_speech=read_audio(kaldi.read_table(corpus / "prompt.scp")[key]),
            prompt_text=kaldi.read_table(corpus / "prompt_text")[key],
            steps=2,
            guidance=1.0,
            speed=1.5,
            seed=7,
        )
        assert rate == 16000
        np.testing.assert_allclose(found, expected["wav"].clamp(-1, 1), atol=2e-4)
        latent = np.load(tmp_path / "out" / "denorm" / f"{key}.npy")
        np.testing.assert_allclose(latent, expected["feat_gen_denorm"], atol=1e-3)


def test_plain_synthesis_from_the_command_line(corpus, trained, text2speech, tmp_path):
    key, text = next(iter(kaldi.read_table(corpus / "text").items()))
    (tmp_path / "keys").write_text(f"{key}\n")
    more = ("--key_file", str(tmp_path / "keys"), "--steps", "2")
    assert decode(corpus, trained, tmp_path / "out", *more, prompts=False) == 0
    expected = text2speech(text, steps=2, seed=0)["feat_gen_denorm"]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "denorm" / f"{key}.npy"), expected, atol=1e-3)


def break_prompt_text(corpus, folder):
    lines = (corpus / "prompt_text").read_text().splitlines()
    (folder / "prompt_text").write_text("\n".join(lines[:2]) + "\n")
    return [f"{folder}/prompt_text,prompt_text,text", f"{corpus}/prompt.scp,prompt_speech,sound"]


def break_rate(corpus, folder):
    soundfile.write(folder / "slow.wav", np.zeros(8000), 8000)
    lines = [f"{key} {folder}/slow.wav\n" for key in kaldi.read_table(corpus / "text")]
    (folder / "prompt.scp").write_text("".join(lines))
    return [f"{corpus}/prompt_text,prompt_text,text", f"{folder}/prompt.scp,prompt_speech,sound"]


def break_file(corpus, folder):
    lines = [f"{key} {folder}/gone.wav\n" for key in kaldi.read_table(corpus / "text")]
    (folder / "prompt.scp").write_text("".join(lines))
    return [f"{corpus}/prompt_text,prompt_text,text", f"{folder}/prompt.scp,prompt_speech,sound"]


def only(name, kind, corpus, folder):
    file = "prompt.scp" if name == "prompt_speech" else name
    return [f"{corpus}/{file},{name},{kind}"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (functools.partial(only, "prompt_speech", "sound"), "there is prompt_speech but no prompt_text"),
        (functools.partial(only, "prompt_text", "text"), "there is prompt_text but no prompt_speech"),
        (break_prompt_text, "prompt_text: has no entry for the utterance read-train-00002"),
        (break_rate, "8000 Hz, but the model works at 16000 Hz; resample the prompts"),
        (break_file, "no such file"),
    ],
)
def test_bad_prompts_end_the_command_with_one_sentence(corpus, trained, tmp_path, capsys, prepare, message):
    more = [part for entry in prepare(corpus, tmp_path) for part in ("--data_path_and_name_and_type", entry)]
    assert decode(corpus, trained, tmp_path / "out", *more, prompts=False) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line
