"""The ESPnet recipes: from nothing to synthesised and recognised speech, in a checkout, and with bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.paths import ROOT

from wavcube_plugins.data import kaldi
from wavcube_plugins.espnet import preparation, recipe
from wavcube_plugins.evaluation import tts_scores as score
from wavcube_plugins.synthetic.mini import read_mini

pytestmark = pytest.mark.integration

RECIPES = ROOT / "espnet_recipe"


def run(folder, *arguments, script="./run.sh", timeout=1500):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("LIBRITTS", "LIBRISPEECH"):
        environment.pop(name, None)
    command = [script, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def refused(result):
    """The one line of an error, after checking that it is one."""
    assert result.returncode == 2, result.stderr[-2000:]
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr[-2000:]
    return lines[0]


@pytest.fixture(scope="module")
def tts(tmp_path_factory):
    """The TTS recipe, run on a small mini corpus from nothing to recordings."""
    folder = tmp_path_factory.mktemp("recipe") / "tts1"
    shutil.copytree(RECIPES / "tts1", folder)
    sizes = "--mini_train 12 --mini_valid 3 --mini_test 2 --speakers 2"
    tiny = "--max_epoch 2 --tts_conf dim=48 --tts_conf num_heads=1 --tts_conf num_layers=2 --tts_conf text_dim=32"
    result = run(
        folder,
        *("--corpus", "mini", "--python", sys.executable, "--local_data_opts", sizes, "--stop_stage", 8),
        *("--train_args", tiny, "--inference_args", "--steps 4"),
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder, result


def test_tts_from_nothing_to_recordings(tts):
    folder, result = tts
    assert [line for line in result.stdout.splitlines() if line.startswith("2epoch results")]
    out = folder / "exp/tts_train_mini_char/decode_valid.loss.best/test"
    recordings = kaldi.read_table(out / "wav/wav.scp")
    assert recordings.keys() == kaldi.read_table(folder / "data/test/text").keys()
    for path in recordings.values():
        samples, rate = soundfile.read(folder / path)
        assert rate == 16000 and len(samples) > 8000 and np.isfinite(samples).all() and np.abs(samples).max() > 1e-3
    # Prompts are other sentences of the same speaker.
    prompts, texts = (kaldi.read_table(folder / "dump/raw/test" / name) for name in ("prompt.scp", "prompt_text"))
    for key, path in prompts.items():
        assert Path(path).stem.startswith("read-train-") and texts[key] in (folder / "data/train/text").read_text()
        assert kaldi.read_table(folder / "data/train/utt2spk")[f"{key[:5]}-{Path(path).stem}"] == key[:5]
    assert not [name for name in torch.load(folder / "exp/tts_train_mini_char/latest.pth") if "feats_extract" in name]


def test_tts_goes_on_where_it_was(tts):
    folder, _ = tts
    result = run(
        folder,
        *("--corpus", "mini", "--python", sys.executable, "--stage", 7, "--stop_stage", 7),
        *("--train_args", "--max_epoch 3 --tts_conf dim=48 --tts_conf num_heads=1 --tts_conf num_layers=2 "
          "--tts_conf text_dim=32"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    epochs = [line[:6] for line in result.stdout.splitlines() if "epoch results" in line]
    assert epochs == ["3epoch"]


def test_asr_from_tokens_to_scores(tts, tmp_path):
    """The ASR recipe on the data of the other; its own first stages are the same calls."""
    folder = tmp_path / "asr1"
    shutil.copytree(RECIPES / "asr1", folder)
    shared = ("--datadir", tts[0] / "data", "--dumpdir", tts[0] / "dump")
    tiny = "--max_epoch 1 --encoder_conf output_size=32 --encoder_conf hidden_size=32"
    result = run(
        folder,
        *("--corpus", "mini", "--python", sys.executable, "--stage", 10, *shared, "--asr_args", tiny),
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    out = folder / "exp/asr_train_mini_char/decode_mini_valid.loss.best/test"
    scores = json.loads((out / "score.json").read_text())
    assert scores["utterances"] == 2 and scores["cer"] > 0 and f"CER {scores['cer']:.1f} %" in result.stdout


def test_failures_of_the_stages_are_one_sentence(tts, tmp_path):
    folder = tmp_path / "tts1"
    shutil.copytree(tts[0], folder, symlinks=True)
    mini = ("--corpus", "mini", "--python", sys.executable)

    def stage(number):
        return "--stage", number, "--stop_stage", number

    assert "LIBRITTS in db.sh is empty" in refused(run(folder, "--python", sys.executable, *stage(1)))
    (folder / "db.sh").write_text("LIBRITTS=downloads\n")  # as in a checkout
    assert 'is "downloads", but this recipe does not download' in refused(
        run(folder, "--python", sys.executable, *stage(1))
    )
    (folder / "db.sh").write_text(f"LIBRITTS={tmp_path}\n")
    assert "no folder train-clean-100 in it" in refused(run(folder, "--python", sys.executable, *stage(1)))
    assert "--fs 24000: WavCube works at 16000 Hz" in refused(run(folder, *mini, "--fs", 24000))
    assert "unknown option --stagge" in refused(run(folder, *mini, "--stagge", 3))
    assert "nix.yaml: no such configuration file" in refused(run(folder, *mini, "--train_config", "nix.yaml"))
    assert "has no ESPnet with WavCube" in refused(run(folder, "--corpus", "mini", "--python", "/bin/false"))
    for name, number in [("data/train/text", 2), ("dump/raw/org/valid/text", 4), ("dump/raw/train/text", 5)]:
        before = (folder / name).read_text()
        (folder / name).write_text("")
        assert f"{name}: is empty" in refused(run(folder, *mini, *stage(number)))
        (folder / name).write_text(before)
    shutil.rmtree(folder / "exp/tts_train_mini_char")
    assert "valid.loss.best.pth: no such model; run --stage 7 first" in refused(run(folder, *mini, *stage(8)))


def test_what_is_wrong_with_data_is_one_sentence(tts, tmp_path, capsys):
    shutil.copytree(tts[0] / "dump/raw/test", tmp_path / "test")
    shutil.copytree(tts[0] / "data/test", tmp_path / "given")
    tokens = tts[0] / "dump/token_list/char/tokens.txt"
    texts = kaldi.read_table(tmp_path / "test/text")
    first, *_ = texts

    def sentence(*arguments):
        assert recipe.main([*map(str, arguments)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    prompts = ("prompts", tmp_path / "test", "--given", tmp_path / "given", "--source", tts[0] / "dump/raw/train")
    assert recipe.main([*map(str, prompts), "--token_list", str(tokens)]) == 0
    kaldi.write_table(tmp_path / "test/text", {**texts, first: "naïve Ω"})
    said = sentence(*prompts, "--token_list", tokens)
    assert f"test/text: {first} has characters that the model was not trained on, 'ï' 'Ω'" in said
    assert "no such token list; run --stage 5 first" in sentence("check", tmp_path / "test", "--token_list", "nix.txt")

    for seconds, rate, how in [(0.4, 16000, "too short, 0.40 s"), (13.0, 22050, "too long, 13.00 s")]:
        prompt = tmp_path / "prompt.wav"
        soundfile.write(prompt, np.zeros(int(seconds * rate)), rate)
        kaldi.write_table(tmp_path / "given/prompt.scp", dict.fromkeys(texts, prompt))
        kaldi.write_table(tmp_path / "given/prompt_text", dict.fromkeys(texts, "a prompt"))
        said = sentence(*prompts)
        assert how in said and "prompt.wav" in said
    kaldi.write_table(tmp_path / "given/prompt_text", {"other": "a prompt"})
    assert f"prompt_text: {first} is missing; a prompt needs a recording and its transcript" in sentence(*prompts)

    prompt.write_text("no audio")
    kaldi.write_table(tmp_path / "test/text", texts)
    kaldi.write_table(tmp_path / "test/wav.scp", dict.fromkeys(texts, prompt))
    assert "prompt.wav" in sentence("format", tmp_path, tmp_path / "out", "test", "--fs", "16k")
    soundfile.write(prompt, np.zeros(8000), 8000)
    assert "has 8000 Hz, the model takes 16000 Hz" in sentence("check", tmp_path / "test", "--fs", "16000")
    kaldi.write_table(tmp_path / "test/wav.scp", dict.fromkeys(texts, "sox a.wav -t wav - |"))
    assert "is a pipe, which needs Kaldi's tools" in sentence(
        "format", tmp_path, tmp_path / "out", "test", "--fs", "16k"
    )
    kaldi.write_table(tmp_path / "test/wav.scp", {"stranger": prompt})
    assert "is in wav.scp but not in text" in sentence("check", tmp_path / "test")
    (tmp_path / "test/text").write_text(f"{first}\n")
    assert f"text:1: {first} has no value" in sentence("check", tmp_path / "test")


def write_script(path, *lines):
    """A stand-in that notes its arguments in calls.txt beside it and then runs the lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = """printf '%s\\n' "$@" --end >> "$(dirname "$0")/calls.txt\""""
    path.write_text("\n".join(["#!/usr/bin/env bash", "set -eu", note, *lines, ""]))
    path.chmod(0o755)
    return path


def calls_of(script):
    """The arguments of each call of a stand-in; those of our data commands are ones that they take."""
    noted = script.with_name("calls.txt").read_text()
    calls = [call.split("\n")[:-1] for call in noted.split("--end\n")[:-1]]
    for call in calls:
        if call[1] == "wavcube_plugins.espnet.recipe":
            recipe.make_parser().parse_args(call[2:])
    return calls


# The stages of ESPnet's scripts by number and name, as they were in April 2026 (202604).
TTS_STAGES = {
    1: "Data preparation for data/${train_set}, data/${valid_set}, etc.",
    2: "Format wav.scp: data/ -> ${data_feats}/",
    3: "Prepare speaker id: data/ -> ${data_feats}/",
    4: "Remove long/short data: ${data_feats}/org -> ${data_feats}",
    5: "Generate token_list from ${srctexts}",
    6: "TTS collect stats: train_set=${_train_dir}, valid_set=${_valid_dir}",
    7: "TTS Training: train_set=${_train_dir}, valid_set=${_valid_dir}",
    8: "Decoding: training_dir=${tts_exp}",
    9: "Scoring: TTS scoring via versa logs on ${_gen_dir}",
    10: "Pack model: ${packed_model}",
}
ASR_STAGES = {
    **{number: TTS_STAGES[number] for number in (1, 4)},
    3: "Format wav.scp: data/ -> ${data_feats}",
    5: "Generate token_list from ${bpe_train_text} using BPE",
    10: "ASR collect stats: train_set=${_asr_train_dir}, valid_set=${_asr_valid_dir}",
    11: "ASR Training: train_set=${_asr_train_dir}, valid_set=${_asr_valid_dir}",
    12: "Decoding: training_dir=${asr_exp}",
    13: "Scoring",
}
# Until December 2023 there was no stage for speaker embeddings.
OLD_TTS_STAGES = {1: TTS_STAGES[1], 2: TTS_STAGES[2]} | {number - 1: TTS_STAGES[number] for number in range(4, 9)}


def stock_script(stages):
    """What a stock script does with --stage and --stop_stage: it logs the stages in between by number and name."""
    lines = [
        ". ./path.sh",
        'while [ $# -gt 0 ]; do case "$1" in --stage) stage=$2 ;; --stop_stage) stop_stage=$2 ;; esac; shift 2; done',
        'log() { echo "$*"; }',
        *(f"{name}='{name}'" for name in ("data_feats", "srctexts", "packed_model", "_gen_dir", "tts_exp", "asr_exp")),
        "_train_dir= _valid_dir= _asr_train_dir= _asr_valid_dir= train_set= valid_set= bpe_train_text=",
    ]
    for number in sorted(stages):
        lines += [
            f"    if [ ${{stage}} -le {number} ] && [ ${{stop_stage}} -ge {number} ]; then",
            f'        log "Stage {number}: {stages[number]}"',
            "    fi",
        ]
    return lines


def stages_run(result):
    """The names of a stock script's stages, in the order in which they ran."""
    return [line.split(": ")[1] for line in result.stdout.splitlines() if line.startswith("Stage ")]


def make_checkout(tmp_path, tts_stages=TTS_STAGES):
    """The layout of an ESPnet checkout, with stand-ins for tts.sh and asr.sh that have those scripts' stages."""
    egs2 = tmp_path / "espnet/egs2"
    write_script(egs2 / "TEMPLATE/tts1/tts.sh", *stock_script(tts_stages))
    write_script(egs2 / "TEMPLATE/asr1/asr.sh", *stock_script(ASR_STAGES))
    for name in ("tts1/path.sh", "asr1/path.sh"):
        (egs2 / "TEMPLATE" / name).write_text(". local/path.sh\n")
    (egs2 / "TEMPLATE/asr1/db.sh").write_text("")
    for name in ("scripts", "pyscripts", "utils", "steps"):
        (egs2 / "TEMPLATE/asr1" / name).mkdir()
    return egs2


def test_setup_installs_into_a_checkout(tmp_path):
    egs2 = make_checkout(tmp_path)
    setup = RECIPES / "setup.sh"
    for target, sentence in [
        (egs2 / "mine/tts2", "must be called tts1 or asr1"),
        (egs2 / "mine/tts", "it must be egs3 of an ESPnet checkout"),
        (tmp_path / "elsewhere/mine/tts1", "must be egs2 of an ESPnet checkout"),
        (egs2 / "TEMPLATE/tts1", "choose a folder of its own"),
    ]:
        assert sentence in refused(run(tmp_path, target, script=setup))
    (egs2 / "libritts/tts1").mkdir(parents=True)
    (egs2 / "libritts/tts1/run.sh").write_text("./tts.sh\n")
    assert "has a recipe of its own" in refused(run(tmp_path, egs2 / "libritts/tts1", script=setup))

    folder = egs2 / "libritts_wavcube/tts1"
    for _ in range(2):  # again is an update
        assert run(tmp_path, folder, script=setup).returncode == 0
        assert (folder / "local/path.sh").read_text() in ("", "export MINE=1\n")
        (folder / "local/path.sh").write_text("export MINE=1\n")
    assert {path.name for path in folder.iterdir() if path.is_symlink()} == {
        *("tts.sh", "path.sh", "db.sh", "scripts", "pyscripts", "utils", "steps")
    }
    assert not any(path.is_symlink() for path in (folder / "local").iterdir())


def test_a_checkout_runs_the_stages_of_tts_sh(tmp_path):
    folder = make_checkout(tmp_path) / "libritts_wavcube/tts1"
    assert run(tmp_path, folder, script=RECIPES / "setup.sh").returncode == 0
    python = write_script(tmp_path / "bin/python")
    options = ("--corpus", "mini", "--python", python, "--test_sets", "test more", "--dumpdir", "dumped")
    options += ("--expdir", "out")
    result = run(folder, *options, "--stage", 5, "--stop_stage", 8, "--ngpu", 2, "--nj", 3)
    assert result.returncode == 0, result.stderr[-2000:]
    names = ["Generate token_list from srctexts", "TTS collect stats", "TTS Training", "Decoding", "Decoding"]
    assert stages_run(result) == names  # each set is decoded after the training
    calls = calls_of(folder / "tts.sh")
    for call, stages, sets in zip(calls, ["57", "88", "88"], ["test more", "test", "more"], strict=True):
        given = dict(zip(call[::2], call[1::2], strict=True))
        assert given["--python"] == f"{python} -m wavcube_plugins.espnet.run"
        assert given["--feats_extract"] == "wavcube" and given["--n_shift"] == "320" and given["--fs"] == "16000"
        assert (given["--stage"] + given["--stop_stage"], given["--ngpu"], given["--nj"]) == (stages, "2", "3")
        assert (folder / given["--train_config"]).is_file() and (folder / given["--inference_config"]).is_file()
        assert (given["--test_sets"], given["--dumpdir"], given["--expdir"]) == (sets, "dumped", "out")
        assert given["--tts_exp"] == "out/tts_train_mini_char"
        if stages == "88":
            assert f"dumped/raw/{sets}/prompt.scp,prompt_speech,sound" in given["--inference_args"]
    chosen = [recipe.make_parser().parse_args(call[2:]) for call in calls_of(python)]
    assert [str(one.folder) for one in chosen] == ["dumped/raw/test", "dumped/raw/more"]
    assert {(str(one.source), str(one.token_list)) for one in chosen} == {
        ("dumped/raw/train", "dumped/token_list/char/tokens.txt")
    }


def test_a_checkout_scores_what_was_decoded_and_nothing_else(tmp_path):
    folder = make_checkout(tmp_path) / "libritts_wavcube/tts1"
    assert run(tmp_path, folder, script=RECIPES / "setup.sh").returncode == 0
    python = write_script(tmp_path / "bin/python")
    for name in ("data/more/phones", *(f"exp/tts_{tag}/decode_valid.loss.best/more/wav/wav.scp" for tag in "xy")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("")
    options = ("--corpus", "mini", "--python", python, "--test_sets", "test more", "--tag", "y")
    result = run(folder, *options, "--stage", 9)
    assert result.returncode == 0 and stages_run(result) == []
    out = "exp/tts_y/decode_valid.loss.best/more"
    (scored,) = [call[2:] for call in calls_of(python) if call[1] == "wavcube_plugins.evaluation.tts_scores"]
    recordings = (f"{out}/wav/wav.scp", "dump/raw/more/wav.scp")
    assert scored == ["speech", "data/more/phones", *recordings, "--out", f"{out}/score.json"]
    assert "data/test has no phones" in result.stdout


def test_a_checkout_refuses_what_it_cannot_do(tmp_path):
    folder = make_checkout(tmp_path) / "libritts_wavcube/tts1"
    assert run(tmp_path, folder, script=RECIPES / "setup.sh").returncode == 0
    said = refused(run(folder, "--corpus", "mini", "--python", "/with space/python"))
    assert "/with space/python: tts.sh would split it at its spaces" in said
    for option in ("cache_latents", "datadir", "model"):
        said = refused(run(folder, "--corpus", "mini", f"--{option}", "true"))
        assert f"--{option}: tts.sh has no such option; use it with --driver pip" in said
    assert not (folder / "calls.txt").exists()


def test_a_checkout_with_other_stages_is_refused_by_name(tmp_path):
    folder = make_checkout(tmp_path, OLD_TTS_STAGES) / "libritts_wavcube/tts1"
    assert run(tmp_path, folder, script=RECIPES / "setup.sh").returncode == 0
    said = refused(run(folder, "--corpus", "mini"))
    assert 'tts.sh: "TTS collect stats" is stage 5 there' in said and "where it is stage 6; update the checkout" in said
    assert not (folder / "calls.txt").exists()


def test_setup_installs_for_espnet3(tmp_path):
    egs3 = tmp_path / "espnet/egs3"
    (egs3 / "TEMPLATE/asr").mkdir(parents=True)
    (egs3 / "TEMPLATE/asr/run.py").write_text("")
    for task in ("asr", "tts"):
        (egs3 / "mine").mkdir(exist_ok=True)
        result = run(egs3 / "mine", task, script=RECIPES / "setup.sh")  # relative to where one is
        assert result.returncode == 0, result.stderr
        assert "installed into " + str(egs3 / "mine" / task) in result.stdout
        names = {path.relative_to(egs3 / "mine" / task).as_posix() for path in (egs3 / "mine" / task).rglob("*.*")}
        assert names >= {"run.py", "path.sh", "conf/training.yaml", "dataset/__init__.py", "src/inference.py"}
        assert not any(path.is_symlink() for path in (egs3 / "mine" / task).rglob("*"))


def test_setup_lists_what_a_checkout_lacks(tmp_path):
    egs2 = make_checkout(tmp_path)
    folder = egs2 / "libritts_wavcube/asr1"

    def needed(**modules):
        """The list, with a python3 on the checkout's path that has the given modules."""
        found = modules.pop("espnet2", None)
        answers = [f'case "$2" in *espnet2*) echo "{found}" ;;' if found else 'case "$2" in *espnet2*) exit 1 ;;']
        answers += [f'*"import {name}"*) exit {0 if there else 1} ;;' for name, there in modules.items()]
        write_script(tmp_path / "bin/python3", *answers, "esac")
        (egs2 / "TEMPLATE/asr1/path.sh").write_text(f"export PATH={tmp_path}/bin:/usr/bin:/bin\n. local/path.sh\n")
        result = run(tmp_path, folder, script=RECIPES / "setup.sh")
        assert result.returncode == 0, result.stderr
        return [line[4:] for line in result.stdout.splitlines() if line.startswith("  * ")]

    everything = needed(wavcube_plugins=False, resampy=False)
    for item, start in zip(
        everything, ("tools/activate_python.sh", "ESPnet in", "this package in", "resampy", "sclite"), strict=True
    ):
        assert item.startswith(start)
    (tmp_path / "espnet/tools").mkdir()
    (tmp_path / "espnet/tools/activate_python.sh").write_text("")
    (tmp_path / "bin/sclite").write_text("")
    (tmp_path / "bin/sclite").chmod(0o755)
    (foreign,) = needed(espnet2="/site-packages/espnet2/__init__.py", wavcube_plugins=True, resampy=True)
    assert foreign.startswith("the checkout's own espnet2") and "/site-packages/espnet2/__init__.py" in foreign
    own = (tmp_path / "espnet/espnet2/__init__.py").resolve()
    assert needed(espnet2=own, wavcube_plugins=True, resampy=True) == []


def test_a_checkout_runs_the_stages_of_asr_sh(tmp_path):
    folder = make_checkout(tmp_path) / "librispeech_wavcube/asr1"
    assert run(tmp_path, folder, script=RECIPES / "setup.sh").returncode == 0
    result = run(folder, "--corpus", "mini", "--python", "my/python", "--stage", 10)
    assert result.returncode == 0, result.stderr[-2000:]
    (call,) = calls_of(folder / "asr.sh")
    given = dict(zip(call[::2], call[1::2], strict=True))
    assert given["--python"] == "my/python -m wavcube_plugins.espnet.run"
    assert given["--local_data_opts"].split() == ["--python", "my/python", "--corpus", "mini"]
    assert "--frontend" not in call  # it is in the configuration
    assert stages_run(result) == ["ASR collect stats", "ASR Training", "Decoding", "Scoring"]
    said = refused(run(folder, "--corpus", "mini", "--python", "/with space/python"))
    assert "/with space/python: asr.sh would split it at its spaces" in said


@pytest.mark.parametrize("task", ["tts", "asr"])
def test_spaces_in_paths_and_the_model_of_cached_latents(tmp_path, task):
    """All stages of the pip drivers, with a stand-in for Python."""
    here = tmp_path / "one two"
    shutil.copytree(RECIPES / f"{task}1", here / "recipe")
    dump, exp = here / "dump", here / "exp"
    model = exp / f"{task}_train_mini_char"
    out = model / ("decode_valid.loss.best/test" if task == "tts" else "decode_mini_valid.loss.best/test")
    for path in (
        *(exp / f"{task}_stats_char/{name}/text_shape" for name in ("train", "valid")),
        *(dump / "token_list/char/tokens.txt", here / "data/test/phones", model / "valid.loss.best.pth"),
        *(out / "log/output.1/wav/a.wav", out / "log/output.1/1best_recog/text"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a 3\n")
    answers = (
        'case " $* " in *" split "*) echo 1 ;; *" latents "*) printf "%s\\n" --model "my model" --dtype float32 ;; esac'
    )
    python = write_script(here / "python", answers)
    result = run(
        here / "recipe",
        *("--corpus", "mini", "--python", python, "--datadir", here / "data", "--dumpdir", dump, "--expdir", exp),
        *("--model", "named one", f"--{'train' if task == 'tts' else 'asr'}_args", "--max_epoch 2"),
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    calls = calls_of(python)
    assert not [word for call in calls for word in call if word.startswith("two")]
    ours = [call[2:] for call in calls if call[1] == "wavcube_plugins.espnet.recipe"]
    assert {call[0] for call in ours} >= {"mini", "format", "check", "split"}
    assert {call[3] for call in calls if call[1] == "wavcube_plugins.espnet.run"} == {
        f"espnet2.bin.{name}"
        for name in ("tokenize_text", "aggregate_stats_dirs", f"{task}_train", f"{task}_inference")
    }
    (asked,) = [call[1:] for call in ours if call[0] == "latents"]
    part = "feats_extract" if task == "tts" else "frontend"
    assert asked[:3] == [task, "--config", "conf/tuning/train_mini.yaml"] and asked[-2:] == ["--max_epoch", "2"]
    assert asked[asked.index("model=named one") - 1] == f"--{part}_conf"
    extracted = [call[3:] for call in calls if call[1] == "wavcube_plugins.cli"]
    assert extracted == [
        [f"{dump}/raw/{name}/wav.scp", f"{dump}/latents/{name}", "--model", "my model", "--dtype", "float32"]
        for name in ("train", "valid")
    ]


@pytest.mark.parametrize(
    ("written", "arguments", "found"),
    [
        ("frontend: wavcube", "", ["wavcube", "float32"]),
        ("frontend: wavcube\nfrontend_conf: {model: 'my model', dtype: bfloat16}", "", ["my model", "bfloat16"]),
        ("frontend_conf:\n  model: wavcube", "--frontend wavcube --frontend_conf fs=16000", ["wavcube", "float32"]),
        (
            "frontend: wavcube\nfrontend_conf:\n  model: wavcube",
            "--frontend_conf model=wavcube_pro",
            ["wavcube_pro", "float32"],
        ),
        ("frontend: wavcube\nencoder_conf:\n  model: other\nfrontend_conf:", "--max_epoch 3", ["wavcube", "float32"]),
    ],
)
def test_cached_latents_are_those_of_the_configuration(tmp_path, written, arguments, found, capsys):
    (tmp_path / "train.yaml").write_text(written + "\n")
    assert recipe.main(["latents", "asr", "--config", str(tmp_path / "train.yaml"), *arguments.split()]) == 0
    assert capsys.readouterr().out.splitlines() == ["--model", found[0], "--dtype", found[1]]
    if "frontend_conf" not in arguments:
        written, arguments = (
            written.replace("frontend", "feats_extract"),
            arguments.replace("frontend", "feats_extract"),
        )
        (tmp_path / "train.yaml").write_text(written + "\n")
        options = preparation.extract_options("tts", ["--config", str(tmp_path / "train.yaml"), *arguments.split()])
        assert options == ["--model", found[0], "--dtype", found[1]]


@pytest.mark.parametrize(
    ("written", "arguments", "sentence"),
    [
        ("frontend: default", "", "frontend is default, only wavcube has latents"),
        (
            "frontend: wavcube",
            "--frontend_conf features=layers",
            "frontend_conf has features: layers, which needs wave",
        ),
        (
            "frontend: wavcube\nfrontend_conf: {trainable: true}",
            "",
            "frontend_conf has trainable: true, which needs wav",
        ),
        (
            "frontend: wavcube\nfrontend_conf: {revision: v2}",
            "",
            "has revision: v2, of which no latents can be extracted",
        ),
        ("frontend: wavcube\nfrontend_conf: {", "", "not YAML"),
        ("frontend", "", "train.yaml: not a configuration"),
        ("frontend: wavcube", "--frontend_conf nothing", "must be interpreted as dict"),
        ("frontend: wavcube", "--config nix.yaml", "nix.yaml: no such file"),
    ],
)
def test_latents_that_cannot_be_cached_are_one_sentence(tmp_path, written, arguments, sentence, capsys):
    (tmp_path / "train.yaml").write_text(written + "\n")
    assert recipe.main(["latents", "asr", "--config", str(tmp_path / "train.yaml"), *arguments.split()]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert sentence in said


def test_tables_are_split_where_kaldi_splits_them(tmp_path):
    (tmp_path / "text").write_text("a\tone two\r\n  b  three\u2028four\x0bfive \n\nc\t six\n", encoding="utf-8")
    table = kaldi.read_table(tmp_path / "text")
    assert table == {"a": "one two", "b": "three\u2028four\x0bfive", "c": "six"}
    kaldi.write_table(tmp_path / "again", table)
    assert kaldi.read_table(tmp_path / "again") == table
    (tmp_path / "text").write_text("a\t\n")
    with pytest.raises(kaldi.KaldiError, match="text:1: a has no value"):
        kaldi.read_table(tmp_path / "text")


def test_a_conversion_is_made_anew_for_another_source(tmp_path):
    noise = np.random.default_rng(0).normal(size=16000) / 10

    def formatted(name, samples, rate):
        soundfile.write(tmp_path / name, noise[:samples], rate)
        kaldi.write_folder(tmp_path / "data", {"s-a": kaldi.Entry(str(tmp_path / name), "hello", "s")})
        return reformatted()

    def reformatted():
        kaldi.format_folder(tmp_path / "data", tmp_path / "dump", fs=16000)
        path = Path(kaldi.read_table(tmp_path / "dump/wav.scp")["s-a"])
        kaldi.check_folder(tmp_path / "dump", fs=16000)
        samples = int(kaldi.read_table(tmp_path / "dump/utt2num_samples")["s-a"])
        assert soundfile.info(path).frames == samples
        return path, samples, path.stat().st_mtime_ns

    first = formatted("one.wav", 8000, 8000)
    assert first[1] == 16000 and reformatted() == first  # what is there is kept
    assert formatted("one.wav", 4000, 8000)[1] == 8000
    assert formatted("other.wav", 12000, 24000)[1] == 8000
    # A recording that needed no conversion, and needs one now: what `check` says helps.
    assert formatted("one.wav", 9000, 16000)[0] == tmp_path / "one.wav"
    soundfile.write(tmp_path / "one.wav", noise, 8000)
    with pytest.raises(kaldi.KaldiError, match="has 8000 Hz, the model takes 16000 Hz; run --stage 2 again"):
        kaldi.check_folder(tmp_path / "dump", fs=16000)
    assert reformatted()[1] == 32000

    for name, samples in (("one.wav", 8000), ("one.wav", 16000), ("other.wav", 12000)):
        soundfile.write(tmp_path / name, noise[:samples], 8000)
        kaldi.write_table(tmp_path / "given/prompt.scp", {"s-a": tmp_path / name})
        kaldi.write_table(tmp_path / "given/prompt_text", {"s-a": "a prompt"})
        kaldi.make_prompts(tmp_path / "dump", given=tmp_path / "given")
        assert soundfile.info(kaldi.read_table(tmp_path / "dump/prompt.scp")["s-a"]).frames == 2 * samples


def test_corpora_become_data_folders(tmp_path):
    speech = np.random.default_rng(0).normal(size=24000).astype("float32") / 10
    for number, words in enumerate(["Hello there.", "Good bye."]):
        stem = tmp_path / f"LibriTTS/train-clean-100/103/1240/103_1240_00000{number}_000000"
        stem.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(f"{stem}.wav", speech, 24000)
        Path(f"{stem}.normalized.txt").write_text(words + "\n")
    assert recipe.main(["libritts", str(tmp_path), str(tmp_path / "data"), "--valid", "", "--test", ""]) == 2
    other = tmp_path / "LibriTTS/train-other-500/104/1"
    other.mkdir(parents=True)
    soundfile.write(other / "104_1_000000_000000.wav", speech, 24000)
    (other / "104_1_000000_000000.normalized.txt").write_text("More.\n")
    parts = ["--train", "train-clean-100", "--valid", "train-clean-100,train-other-500", "--test", "train-other-500"]
    assert recipe.main(["libritts", str(tmp_path), str(tmp_path / "data"), *parts]) == 0
    assert kaldi.read_table(tmp_path / "data/train/text")["103-1240-000001-000000"] == "Good bye."
    assert [len(kaldi.read_table(tmp_path / "data" / name / "text")) for name in ("train", "valid", "test")] == [
        2,
        3,
        1,
    ]
    kaldi.format_folder(tmp_path / "data/train", tmp_path / "dump", fs=16000, longest=20)
    assert set(kaldi.read_table(tmp_path / "dump/utt2num_samples").values()) == {"16000"}
    kaldi.make_prompts(tmp_path / "dump")
    assert kaldi.read_table(tmp_path / "dump/prompt_text")["103-1240-000000-000000"] == "Good bye."
    with pytest.raises(kaldi.KaldiError, match=r"no utterance lasts between None and 0\.5 s"):
        kaldi.format_folder(tmp_path / "data/train", tmp_path / "dump2", fs=16000, longest=0.5)

    chapter = tmp_path / "LibriSpeech/dev-clean/84/121/84-121.trans.txt"
    chapter.parent.mkdir(parents=True)
    chapter.write_text("84-121-0000 GO DO YOU HEAR\n")
    parts = ["--train", "dev-clean", "--valid", "dev-clean", "--test", "dev-clean"]
    assert recipe.main(["librispeech", str(tmp_path / "LibriSpeech"), str(tmp_path / "libri"), *parts]) == 0
    assert kaldi.read_table(tmp_path / "libri/test/wav.scp")["84-121-0000"].endswith("84/121/84-121-0000.flac")


def test_sub_words(tmp_path):
    text = {f"u{index}": f"the red boat number {index} went down the river again" for index in range(60)}
    kaldi.write_table(tmp_path / "text", text)
    assert recipe.main(["bpe", str(tmp_path / "text"), str(tmp_path / "bpe"), "30"]) == 0
    tokens = (tmp_path / "bpe/tokens.txt").read_text().splitlines()
    assert tokens[:2] == ["<blank>", "<unk>"] and tokens[-1] == "<sos/eos>" and len(set(tokens)) == 30
    from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer

    pieces = SentencepiecesTokenizer(str(tmp_path / "bpe/bpe.model")).text2tokens("the river boat 7")
    assert set(pieces) <= set(tokens)
    with pytest.raises(kaldi.KaldiError, match="60 texts do not give 4000 sub-words; lower --nbpe"):
        preparation.train_bpe(tmp_path / "text", tmp_path / "bpe2", 4000)


def test_lists_are_split_evenly_and_completely(tmp_path):
    kaldi.write_table(tmp_path / "long", {f"k{index:02}": index for index in range(10)})
    kaldi.write_table(tmp_path / "short", {f"k{index:02}": index for index in range(4)})
    lists = {"a": tmp_path / "long", "b": tmp_path / "short"}
    assert kaldi.split_keys(tmp_path / "out", 3, lists) == 3 and kaldi.split_keys(tmp_path / "most", 9, lists) == 4
    for folder, count in (("out", 3), ("most", 4)):
        for name, path in lists.items():
            parts = [kaldi.read_table(tmp_path / folder / f"{name}.{part + 1}.scp") for part in range(count)]
            assert {key: value for part in parts for key, value in part.items()} == kaldi.read_table(path)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_scores_of_text(tmp_path, capsys):
    kaldi.write_table(tmp_path / "ref", {"a": "the red boat", "b": "go home"})
    (tmp_path / "hyp").write_text("a\tthe bed boat\nc\n")
    scores = score.score_text(tmp_path / "ref", tmp_path / "hyp")
    assert scores == {"wer": pytest.approx(60), "cer": pytest.approx(100 * 7 / 16), "utterances": 2, "missing": 1}
    (tmp_path / "hyp").write_text("c nothing\n")
    assert score.main(["text", str(tmp_path / "ref"), str(tmp_path / "hyp")]) == 2
    assert "has none of the utterances of" in capsys.readouterr().err


def test_sentences_of_a_speaker_are_joined(tmp_path, capsys):
    sizes = {"train": 7, "test": 3}
    for join, counts in ((1, [1] * 7), (3, [1, 2, 1, 1, 2])):
        preparation.prepare_mini(tmp_path, sizes, speakers=2, corpus=tmp_path / "audio", join=join)
        texts, phones, recordings, speakers = (
            kaldi.read_table(tmp_path / "train" / name) for name in ("text", "phones", "wav.scp", "utt2spk")
        )
        assert len(texts) == len(counts) and len(kaldi.read_table(tmp_path / "test/text")) == 3
        singles = {record["id"]: record for record in read_mini(tmp_path / "audio", "train")}
        for (key, text), count in zip(texts.items(), counts, strict=True):
            own = [one for one in singles.values() if one["speaker"] == speakers[key]]
            first = own.index(singles["-".join(key.split("-")[1:4])])
            parts = own[first : first + count]
            assert text == " ".join(one["text"] for one in parts)
            assert phones[key].split() == [label for one in parts for label, _, _ in one["phones"]]
            samples = [soundfile.read(tmp_path / "audio" / one["path"])[0] for one in parts]
            assert np.array_equal(soundfile.read(recordings[key])[0], np.concatenate(samples))
    # In a larger corpus the same name means the same sentences.
    preparation.prepare_mini(tmp_path, {"train": 9, "test": 3}, speakers=2, corpus=tmp_path / "audio", join=3)
    larger = kaldi.read_table(tmp_path / "train/wav.scp")
    assert len(recordings.keys() & larger) == 4 and all(
        larger.get(key, path) == path for key, path in recordings.items()
    )
    assert recipe.main(["mini", str(tmp_path), "--join", "0"]) == 2
    assert "--join must be at least 1, got 0" in capsys.readouterr().err


def test_scores_of_speech(tmp_path):
    preparation.prepare_mini(tmp_path, {"test": 3}, speakers=2, corpus=tmp_path / "audio")
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, 1e-4 * np.random.default_rng(0).normal(size=16000), 16000)
    kaldi.write_table(tmp_path / "bad.scp", dict.fromkeys(kaldi.read_table(tmp_path / "test/text"), silence))
    good, bad = score.score_speech(
        *(tmp_path / "test/phones", tmp_path / "test/wav.scp", tmp_path / "bad.scp"),
        cache=tmp_path, utterances=30, epochs=4, progress=False,
    )  # fmt: skip
    assert good["per"] < 60 < bad["per"] and good["utterances"] == 3
