"""`wavcube superb`: every task of SUPERB and SUPERB-SG through s3prl's unedited runner, from one bench file."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from helpers.corpora import iemocap
from helpers.paths import ROOT

from wavcube_plugins import checkpoints, cli
from wavcube_plugins.superb import mini, results, running, tasks, workspace
from wavcube_plugins.superb.bench_file import read_bench
from wavcube_plugins.superb.job import Slot
from wavcube_plugins.superb.runs import Run, make_runs

pytestmark = pytest.mark.integration

TASK_NAMES = [task.name for task in tasks.TASKS]


def wavcube(*arguments, capsys) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code, output and errors."""
    code = cli.main(["superb", *map(str, arguments)])
    return code, *capsys.readouterr()


def error_of(*arguments, capsys, code=2) -> str:
    """Run the command, expect it to fail with one line, and return that."""
    found, _, errors = wavcube(*arguments, capsys=capsys)
    assert found == code and errors.count("\n") == 1 and "Traceback" not in errors
    return errors


def bench_file(folder, **values) -> Path:
    found = {"out": "out", "device": "cpu", "rows": {"nano": {"upstream": "wavcube", "checkpoint": "nano"}}, **values}
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


# The real thing: a small set for every task, a few steps of each ----------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The short mini SUPERB, made but not run; one fold and one target speaker."""
    folder = tmp_path_factory.mktemp("superb") / "mini"
    path = mini.make(folder, short=True, progress=False)
    found = yaml.safe_load(path.read_text())
    found["rows"] = {"nano": found["rows"]["nano"]}
    found["variants"] = {"er": ["fold1"], "vc": ["TEF1"]}
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(small):
    """The same after every task has trained, been evaluated and scored in processes of s3prl."""
    command = [sys.executable, "-m", "wavcube_plugins.cli", "superb", "run", str(small)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return small


def test_every_task_trains_evaluates_and_is_collected(finished, capsys):
    code, output, _ = wavcube("collect", finished, capsys=capsys)
    assert code == 0
    found = json.loads((finished.parent / "results.json").read_text())["rows"]["nano"]
    assert list(found) == TASK_NAMES
    for task in tasks.TASKS:
        wanted = {metric.name for metric in task.metrics} - ({"wer", "asv"} if task.name == "vc" else set())
        assert set(found[task.name]["scores"]) == wanted
        assert all(math.isfinite(value) for value in found[task.name]["scores"].values())
    assert found["er"]["variants"] == [1, 1]
    assert "| SID, acc % ↑ |" in output and "(published)" not in output
    assert (finished.parent / "results.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((finished.parent / "results.csv").open()))
    assert {row["task"] for row in rows} == set(TASK_NAMES)


def test_nothing_is_done_twice(finished, capsys):
    runs = make_runs(read_bench(finished))
    before = {run.name: run.state_path.stat().st_mtime_ns for run in runs}
    mini.make(finished.parent, short=True, progress=False)
    code, _, errors = wavcube("run", finished, capsys=capsys)
    assert code == 0, errors
    assert {run.name: run.state_path.stat().st_mtime_ns for run in runs} == before


def test_weights_of_another_release_do_not_mix_with_what_was_run(finished, capsys, monkeypatch, tmp_path):
    shutil.copytree(checkpoints.ASSETS / "nano", tmp_path / "nano")
    with (tmp_path / "nano/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    monkeypatch.setattr(checkpoints, "ASSETS", tmp_path)
    code, _, errors = wavcube("run", finished, "--tasks", "ks", capsys=capsys)
    assert code == 1 and "was run with other contents of its row's files; remove" in errors


def test_the_teacher_of_an_earlier_release_is_replaced(tmp_path):
    mini.save_teacher(tmp_path / "teacher")
    path = tmp_path / "teacher/model.safetensors"
    wanted, made = path.read_bytes(), path.stat().st_mtime_ns
    mini.save_teacher(tmp_path / "teacher")
    assert path.stat().st_mtime_ns == made
    path.write_bytes(b"of an earlier release")
    mini.save_teacher(tmp_path / "teacher")
    assert path.read_bytes() == wanted
    assert sorted(item.name for item in tmp_path.iterdir()) == ["teacher"]


def test_other_settings_do_not_mix_with_what_was_run(finished, capsys):
    found = yaml.safe_load(finished.read_text())
    found["settings"]["sid"] |= {"runner.total_steps": 3}
    found["rows"]["nano"].pop("options")
    path = finished.parent / "changed.yaml"
    path.write_text(yaml.safe_dump(found))
    code, _, errors = wavcube("run", path, "--tasks", "sid", capsys=capsys)
    assert code == 1 and "was run with other settings; remove" in errors


def test_what_changes_in_the_middle_of_a_training_is_seen(tmp_path, monkeypatch):
    """Settings and files count from the first checkpoint on, before any step has ended."""

    class Killed:
        def __init__(self, *_, **__):
            if write:
                exp.mkdir(exist_ok=True)
                (exp / "states-1.ckpt").touch()

        def poll(self):
            return -9

    monkeypatch.setattr(subprocess, "Popen", Killed)
    model = tmp_path / "model.ckpt"
    model.write_bytes(b"weights")
    rows = {"a": {"upstream": "wavcube", "checkpoint": "model.ckpt"}}
    bench = read_bench(bench_file(tmp_path, device="cuda", rows=rows, tasks=["pr"]))
    (run,) = make_runs(bench)
    exp = run.folder / "exp"

    def error(**settings):
        config = bench.config(run.task, {}) | settings
        (failed,) = running.execute([run], {"pr": config}, [Slot("none")])
        return failed.error

    write = False
    assert "train ended with exit status -9" in error(seed=1)
    write = True
    assert "train ended with exit status -9" in error(seed=2)  # nothing had been trained
    assert "was run with other settings; remove" in error(seed=3)
    assert "train ended with exit status -9" in error(seed=2)
    model.write_bytes(b"other weights")
    assert "was run with other contents of its row's files; remove" in error(seed=2)
    run.save_state({"settings": run.state()["settings"]})  # as versions before noted it
    assert "train ended with exit status -9" in error(seed=2)


def test_s3prl_is_unedited_and_its_caches_are_in_the_copy(finished):
    installed = workspace.s3prl_folder()
    copy = finished.parent / "code/s3prl"
    for name in ("run_downstream.py", "downstream/runner.py", "downstream/sv_voxceleb1/expert.py", "hub.py"):
        assert (installed / name).read_bytes() == (copy / name).read_bytes()
    assert (copy / "downstream/voxceleb1/.cache/train.pkl").is_file()
    assert (copy / "downstream/sv_voxceleb1/.wav_lengths/Voxceleb1_length.pt").is_file()


def test_verification_takes_the_best_of_its_checkpoints(finished):
    (run,) = [run for run in make_runs(read_bench(finished)) if run.task.name == "asv"]
    state = run.state()
    rates = [state["steps"][f"states-{step}"]["eer"] for step in (1, 2)]
    assert state["scores"]["eer"] == min(rates)


def test_a_killed_run_goes_on_from_its_checkpoint(small, capsys):
    """Killed with no warning in the middle of training, the driver too, it ends with all its steps and one result."""
    found = yaml.safe_load(small.read_text())
    found |= {"out": "killed", "tasks": ["sid"]}
    found["settings"]["sid"] |= {"runner.total_steps": 30, "runner.save_step": 3, "runner.eval_step": 15}
    path = small.parent / "killed.yaml"
    path.write_text(yaml.safe_dump(found))
    command = [sys.executable, "-m", "wavcube_plugins.cli", "superb", "run", str(path)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    driver = subprocess.Popen(command, **quiet)
    (run,) = make_runs(read_bench(path))
    exp = run.folder / "exp"
    limit = time.monotonic() + 300
    while not list(exp.glob("states-*.ckpt")):
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not run.state().get("done")
    # What the driver left behind ends by itself; no checkpoint is half a file.
    done = subprocess.run(command, **quiet)
    assert done.returncode == 0, done.stderr
    log = (run.folder / "train.log").read_text()
    assert re.search(r"Resume from runs/sid/nano/\S+/exp/states-\d+\.ckpt", log)
    final = torch.load(exp / "states-30.ckpt", weights_only=False)
    assert final["Step"] == 30 and not list(exp.glob(".*.tmp*"))
    state = run.state()
    assert state["done"] and set(state["steps"]) == {"train", "evaluate"}


def test_a_run_that_fails_says_why_and_the_others_go_on(small, capsys):
    found = yaml.safe_load(small.read_text())
    found |= {"out": "failing", "tasks": ["ic", "sid"]}
    found["settings"]["ic"] |= {"downstream_expert.modelrc.UtteranceLevel.pooling": "NoSuchPooling"}
    found["settings"]["sid"] |= {"runner.total_steps": 1, "runner.save_step": 1, "runner.eval_step": 1}
    path = small.parent / "failing.yaml"
    path.write_text(yaml.safe_dump(found))
    code, _, errors = wavcube("run", path, capsys=capsys)
    assert code == 1
    assert re.search(r"ic/nano/\S+: train ended with exit status 1: NameError: name 'NoSuchPooling'.*train.log", errors)
    states = {run.task.name: run.state() for run in make_runs(read_bench(path))}
    assert states["sid"]["done"] and not states["ic"].get("done")


# The plan -----------------------------------------------------------------------------------------------------------


def test_plan_prints_the_commands_that_run(small, capsys):
    code, output, _ = wavcube("plan", small, "--tasks", "sid,er,asv", capsys=capsys)
    assert code == 0 and f"cd {small.parent}" in output
    lines = output.splitlines()
    train = next(line for line in lines if "-d voxceleb1" in line)
    options = small.parent / "only_hidden_states.yaml"
    assert train == (
        "python -m wavcube_plugins.s3prl.run code/s3prl/run_downstream.py -m train -a -u wavcube -k nano "
        f"-g {options} -d voxceleb1 -c configs/sid.yaml -p runs/sid/nano/lr3e-03/exp -o config.optimizer.lr=0.003 "
        "--device cpu"
    )
    assert (
        "# s3prl writes dev-best.ckpt only once dev improves on its initial value; if it never does, states-2.ckpt is "
        "evaluated" in lines
    )
    evaluate = lines[lines.index(train) + 1]
    assert evaluate == (
        "python -m wavcube_plugins.s3prl.run code/s3prl/run_downstream.py -m evaluate -t test "
        "-e runs/sid/nano/lr3e-03/exp/dev-best.ckpt --device cpu"
    )
    assert sum("test_fold='\"'\"'fold1" in line for line in lines) == 1
    assert [name for name in ("states-1.ckpt", "states-2.ckpt", "states-3.ckpt") if name in output] == [
        "states-1.ckpt", "states-2.ckpt"
    ]  # fmt: skip
    config = yaml.safe_load((small.parent / "configs/sid.yaml").read_text())
    assert config["runner"]["total_steps"] == 2 and config["downstream_expert"]["modelrc"]["projector_dim"] == 256
    assert Path(config["downstream_expert"]["datarc"]["meta_data"]).is_file()


def test_plan_with_a_sweep_and_with_other_features(tmp_path, capsys):
    path = bench_file(tmp_path, tasks=["ic"])
    _, output, _ = wavcube("plan", path, "--sweep", capsys=capsys)
    rates = re.findall(r"config\.optimizer\.lr=(\S+)", output)
    assert [float(rate) for rate in rates] == list(tasks.LEARNING_RATES)
    assert "# missing: `corpora` of the bench file has no 'fluent_speech_commands'" in output
    _, output, _ = wavcube("plan", path, "--features", "layers,restored", "--lr", "1e-3,2.5e-4", capsys=capsys)
    chosen = set(re.findall(r"-u (\S+) -k nano(?: -s (\S+))? -d", output))
    assert chosen == {("wavcube", ""), ("wavcube_layers", ""), ("wavcube", "restored")}
    assert "runs/ic/nano-restored/lr0.00025/exp" in output


def test_a_feature_that_the_options_leave_out_is_refused(tmp_path, capsys):
    (tmp_path / "only.yaml").write_text("only_hidden_states: true\n")
    path = bench_file(tmp_path, rows={"a": {"upstream": "wavcube", "options": "only.yaml"}}, tasks=["ic"])
    assert "only.yaml sets only_hidden_states" in error_of("plan", path, "--features", "restored", capsys=capsys)


def test_query_by_example_tries_every_layer(tmp_path):
    rows = {"all": {"upstream": "wavcube_layers", "layers": 3}, "one": {"upstream": "wavcube_layers", "layer": 2}}
    bench = read_bench(bench_file(tmp_path, rows=rows, tasks=["qbe"]))
    commands = [" ".join(run.match_command("dev")) for run in make_runs(bench)]
    assert [re.search(r" -l (\d)", command)[1] for command in commands] == ["0", "1", "2", "2"]
    rows = {"nano": {"upstream": "wavcube_layers", "checkpoint": "nano"}, "large": {"upstream": "wavcube_layers"}}
    rows |= {
        "latent": {"upstream": "wavcube", "checkpoint": "nano"},
        "states": {"upstream": "wavcube", "feature": "wavlm"},
    }
    bench = read_bench(bench_file(tmp_path, rows=rows))
    layers = {row.label: row.layers for row in bench.rows}
    assert layers == {"nano": 7, "large": 25, "latent": 1, "states": 25}


def test_the_protocols_settings(tmp_path):
    """The steps, rates and heads of the published protocol, and every configuration is complete but for paths."""
    bench = read_bench(bench_file(tmp_path))
    steps = {"pr": 100, "sd": 30, "er": 30, "se": 150, "ss": 150, "vc": 10}
    for task in tasks.TASKS:
        config = bench.config(task, {})
        if task.name != "qbe":
            assert config["runner"]["total_steps"] == 1000 * steps.get(task.name, 200)
            assert config["optimizer"]["lr"] == task.learning_rate == (1e-2 if task.name == "pr" else 1e-4)
    assert bench.config(tasks.BY_NAME["se"], {})["downstream_expert"]["modelrc"]["rnn_layers"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {}}, "`rows` is empty"),
        ({"rows": {"a b": "wavcube"}}, "row 'a b': a label takes"),
        ({"rows": {"a": {"upsteam": "x"}}}, "row a: unknown name 'upsteam'"),
        ({"rows": {"a": {}}}, "row a: `upstream` must name"),
        (
            {"rows": {"a": {"upstream": "wavcube", "feature": "latents"}}},
            "row a: no feature 'latents'; there are hidden",
        ),
        ({"tasks": ["xyz"]}, "no task 'xyz'; there are pr, asr"),
        ({"device": "tpu"}, "`device` must be cpu or cuda, got 'tpu'"),
        ({"out": ""}, "`out` is missing"),
        ({"corpora": "all"}, "`corpora` must be a mapping"),
        ({"colour": 1}, "unknown name 'colour'"),
        ({"learning_rates": {"ic": "fast"}}, "learning rates of ic: expected numbers"),
        ({"variants": {"er": ["fold9"]}}, "variants of er: no 'fold9'"),
        ({"settings": {"ic": {"runner.total_steps.x": 1}}, "tasks": ["ic"]}, "'runner.total_steps.x' goes through"),
        (
            {"settings": {"ic": {"runner.total_steps": 9}}, "tasks": ["ic"]},
            "save_step is never reached: 1000 of 9",
        ),
        ({"s3prl": "nowhere", "tasks": ["pr"]}, "nowhere: no s3prl here"),
    ],
)
def test_a_wrong_bench_file_is_one_sentence(tmp_path, capsys, change, message):
    assert message in error_of("plan", bench_file(tmp_path, **change), capsys=capsys)


def test_other_wrong_input_is_one_sentence(tmp_path, capsys):
    assert "no such file" in error_of("plan", tmp_path / "none.yaml", capsys=capsys)
    (tmp_path / "list.yaml").write_text("- a\n")
    assert "expected a mapping" in error_of("plan", tmp_path / "list.yaml", capsys=capsys)
    path = bench_file(tmp_path, tasks=["ic"])
    assert "no row 'x'; there are nano" in error_of("plan", path, "--rows", "x", capsys=capsys)
    assert "--lr takes numbers" in error_of("plan", path, "--lr", "big", capsys=capsys)
    assert "no features 'x'" in error_of("plan", path, "--features", "x", capsys=capsys)
    assert "no run is done yet" in error_of("collect", path, capsys=capsys)
    assert "name an action" in error_of(capsys=capsys)
    assert "is not the bench file of the mini SUPERB" in error_of("mini", tmp_path, capsys=capsys)
    code, _, errors = wavcube("run", path, capsys=capsys)
    assert code == 2 and "IC is left out" in errors and "no task can run" in errors
    assert "--jobs must be at least 1, got -1" in error_of("run", path, "--jobs", "-1", capsys=capsys)
    assert "--gpus does nothing on the device cpu" in error_of("run", path, "--gpus", "0", capsys=capsys)
    both = ("--device", "cuda", "--gpus", "0", "--jobs", "2")
    assert "--jobs does nothing beside --gpus" in error_of("run", path, *both, capsys=capsys)


def test_the_documented_example_of_a_setting_can_be_used(tmp_path):
    page = (ROOT / "docs" / "superb.md").read_text(encoding="utf-8")
    example = yaml.safe_load(re.search(r"`(settings: .+?)` \|", page)[1])
    bench = read_bench(bench_file(tmp_path, **example))
    ((name, values),) = example["settings"].items()
    assert bench.config(tasks.BY_NAME[name], {})["runner"]["total_steps"] == values["runner.total_steps"]


# The corpora --------------------------------------------------------------------------------------------------------


def test_prepare_of_the_mini_set_is_ready_and_stays(small, capsys):
    code, output, _ = wavcube("prepare", small, capsys=capsys)
    assert code == 0 and "13 of 13 tasks are ready" in output
    code, output, _ = wavcube("prepare", small, "--check", capsys=capsys)
    made = [line for line in output.splitlines() if "would make" in line and "made when it is run" not in line]
    assert code == 0 and not made


REMOVED = [
    ("pr", "corpora/libriphone/dev.csv", "1 of 3 tables of files and transcriptions are missing: dev.csv"),
    ("asr", "corpora/librispeech/dev-clean", "no folder dev-clean in it"),
    ("ks", "corpora/speech_commands/_background_noise_", "_background_noise_: no such folder"),
    ("qbe", "corpora/quesst14/scoring/groundtruth_quesst14_dev", "no .rttm file with the ground truth"),
    ("qbe", "corpora/quesst14/Audio/read-test-00000.wav", "English queries and documents are missing: Audio/read-test"),
    ("sid", "corpora/voxceleb1/iden_split.txt", "does not exist: the split of VoxCeleb1"),
    ("asv", "corpora/voxceleb1_verification/test/wav", "the folder test/wav is missing"),
    ("sd", "corpora/libri2mix_diarization/train/segments", "1 of 3 Kaldi files are missing: segments"),
    ("er", "corpora/iemocap/Session3/dialog/EmoEvaluation", "Session3/dialog/EmoEvaluation: no such folder"),
    ("ic", "corpora/fluent_speech_commands/data/valid_data.csv", "data/valid_data.csv: no such file"),
    ("sf", "corpora/snips/slots.txt", "1 of 2 lists are missing: slots.txt"),
    ("se", "corpora/voicebank/noisy_testset_wav_16k", "the folder noisy_testset_wav_16k (or noisy_testset_wav"),
    ("ss", "corpora/libri2mix/test/s2", "test/s2: no such folder"),
    ("vc", "corpora/vcc2020/SEM1", "SEM1: no such folder"),
]


@pytest.mark.parametrize(("task", "place", "message"), REMOVED)
def test_what_is_missing_in_a_corpus_is_named(small, task, place, message, capsys):
    path = small.parent / place
    away = path.with_name("away")
    path.rename(away)
    try:
        code, output, _ = wavcube("prepare", small, "--tasks", task, "--check", capsys=capsys)
    finally:
        away.rename(path)
    assert code == 1 and f"{task.upper()}: not ready" in output and "0 of 1 tasks are ready" in output
    assert any(message in line for line in output.splitlines() if "missing:" in line)


def test_librispeech_lists_come_from_its_transcripts(tmp_path, small, capsys):
    """Without ready tables: word transcriptions, a lexicon, lengths; and a word that no lexicon has is named."""
    root = small.parent / "corpora/librispeech"
    words = {word for path in root.rglob("*.trans.txt") for line in path.open() for word in line.split()[1:]}
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("".join(f"{word} AH0 T\n" for word in sorted(words)))
    path = bench_file(tmp_path, corpora={"librispeech": str(root), "lexicon": str(lexicon)}, tasks=["pr", "asr"])
    code, output, _ = wavcube("prepare", path, capsys=capsys)
    assert code == 0, output
    with (tmp_path / "out/prepared/pr/train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == mini.SHORT["read"].train and set(rows[0]["transcription"].split()) <= words
    with (tmp_path / "out/prepared/asr/lengths/dev-clean.csv").open() as file:
        lengths = list(csv.DictReader(file))
    assert all(soundfile.info(root / row["file_path"]).frames == int(row["length"]) for row in lengths)
    assert len((tmp_path / "out/prepared/pr/phones.txt").read_text().split()) == 2 + 15 * 3 + 24

    lost = sorted(words)[0]
    lexicon.write_text("".join(f"{word} AH0 T\n" for word in sorted(words)[1:]))
    shutil.rmtree(tmp_path / "out")
    code, output, _ = wavcube("prepare", path, "--tasks", "pr", capsys=capsys)
    assert code == 1 and f"1 words are in no lexicon, {lost} among them" in output


def test_the_clones_lists_are_asked_for_where_the_wheel_has_none(tmp_path, small, capsys):
    root = str(small.parent / "corpora/voxceleb1")
    path = bench_file(tmp_path, corpora={"voxceleb1": root}, tasks=["sid"])
    code, output, _ = wavcube("prepare", path, capsys=capsys)
    assert code == 1 and "name a clone with `s3prl`, or VoxCeleb1's iden_split.txt as `voxceleb1_split`" in output
    clone = tmp_path / "clone/s3prl"
    (clone / "downstream/voxceleb1").mkdir(parents=True)
    (clone / "run_downstream.py").touch()
    shutil.copy(small.parent / "corpora/voxceleb1/iden_split.txt", clone / "downstream/voxceleb1/veri_test_class.txt")
    path = bench_file(tmp_path, corpora={"voxceleb1": root}, tasks=["sid"], s3prl="clone")
    code, output, _ = wavcube("prepare", path, capsys=capsys)
    assert code == 0, output


def test_other_corpora_get_lists_of_their_own(tmp_path, small, capsys):
    first, second = (str(small.parent / "corpora/iemocap"), tmp_path / "iemocap")
    shutil.copytree(first, second)
    shutil.rmtree(second / "Session1/dialog/EmoEvaluation")
    (second / "Session1/dialog/EmoEvaluation").mkdir()
    path = bench_file(tmp_path, corpora={"iemocap": first}, tasks=["er"])
    assert wavcube("prepare", path, capsys=capsys)[0] == 0
    path = bench_file(tmp_path, corpora={"iemocap": str(second)}, tasks=["er"])
    code, output, _ = wavcube("prepare", path, capsys=capsys)
    assert code == 1 and "Session1: no utterance with one of the four emotions" in output


def test_emotions_are_read_as_the_corpus_has_them(tmp_path, capsys):
    """Excitement counts as happiness; other emotions, comments and utterances without audio are left out."""
    root = tmp_path / "iemocap"
    iemocap(root)
    with (root / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt").open("a") as listing:
        listing.write("\n[2.1 - 3.4]\tSes01F_impro01_F099\tsad\t[1.0, 1.0, 1.0]\n")
    path = bench_file(tmp_path, corpora={"iemocap": str(root)}, tasks=["er"])
    code, output, _ = wavcube("prepare", path, capsys=capsys)
    assert code == 0, output
    made = json.loads((tmp_path / "out/prepared/er/Session1/test_meta_data.json").read_text())
    assert made["labels"] == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    rows = made["meta_data"]
    assert [(Path(row["path"]).stem[-4:], row["label"]) for row in rows] == [
        ("F000", "neu"), ("M001", "hap"), ("F002", "hap"), ("M003", "ang"), ("F004", "sad"),
    ]  # fmt: skip
    assert all((root / row["path"]).is_file() and row["speaker"] == "Ses01F" for row in rows)
    rest = json.loads((tmp_path / "out/prepared/er/Session1/train_meta_data.json").read_text())["meta_data"]
    assert len(rest) == 20 and not [row for row in rest if row["path"].startswith("Session1")]


# Results ------------------------------------------------------------------------------------------------------------

PRINTED = {
    "pr": ("train per: 0.9\nloss\rtest per: 0.125\n", {"per": 12.5}),
    "asr": ("test-clean loss: 1\ntest-clean uer: 3.0\ntest-clean wer: 9.36\n", {"wer": 9.36}),
    "ks": ("dev acc: 0.5\ntest acc: 0.75\n", {"acc": 75}),
    "sid": ("test acc: 8.5e-1\n", {"acc": 85}),
    "er": ("test acc: 1.0\n", {"acc": 100}),
    "ic": ("overall: 10%|  |test acc: 0.5", {"acc": 50}),
    "asv": ("sv-voxceleb1/test-EER: 0.0586\n", {"eer": 5.86}),
    "sf": ("test slot_type_f1: 0.87\ntest slot_value_cer: 0.288\ntest slot_value_wer: 0.4\n", {"f1": 87, "cer": 28.8}),
    "se": ("Average si_sdr of 8 utts is 3.2\nAverage stoi of 8 utts is 0.93\nAverage pesq of 8 utts is 2.0800",
           {"pesq": 2.08, "stoi": 0.93}),
    "ss": ("Average si_sdr of 30 utts: -9.2000\nAverage stoi of 30 utts: 0.9", {"si_sdri": -9.2}),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_scores_are_read_from_what_s3prl_prints(name):
    output, wanted = PRINTED[name]
    found = {metric.name: metric.read(output) for metric in tasks.BY_NAME[name].metrics}
    assert found == pytest.approx(wanted)
    assert all(metric.read("nothing of it") is None for metric in tasks.BY_NAME[name].metrics)


@pytest.fixture
def bench(tmp_path):
    rows = {"a": "wavcube", "b": "fbank"}
    return read_bench(bench_file(tmp_path, rows=rows, tasks=["pr", "er", "sf"]))


def finish(bench, task, row, rate, dev, variant="", note="", **scores):
    (found,) = [one for one in bench.rows if one.label == row]
    run = Run(bench, tasks.BY_NAME[task], found, rate, variant)
    state = {"scores": scores, "dev": dev, "done": True}
    run.save_state(state | ({"note": note} if note else {}))
    return run


def test_dev_decides_between_learning_rates_and_folds_are_averaged(bench, capsys):
    # The better on dev has the worse test score, and is taken.
    finish(bench, "pr", "a", 1e-2, 20.0, per=30.0)
    finish(bench, "pr", "a", 1e-3, 25.0, per=22.0)
    finish(bench, "pr", "b", 1e-3, math.nan, per=99.0)
    for number, (dev, acc) in enumerate([(50, 40), (50, 60), (70, 50), (60, 70), (60, 80)], 1):
        finish(bench, "er", "a", 1e-4, dev, f"fold{number}", acc=acc)
    finish(bench, "er", "b", 1e-4, 90, "fold2", acc=33)
    finish(bench, "sf", "b", 1e-4, 80.0, f1=81.234, cer=40.0, note="the last checkpoint was tested")
    code, output, _ = wavcube("collect", bench.folder.parent / "bench.yaml", capsys=capsys)
    assert code == 0
    lines = output.splitlines()
    assert lines[2].startswith("| task | a | b | WavCube (published) | WavCube-Pro (published)")
    pr, er, f1, cer = (next(line for line in lines if line.startswith(f"| {name}")) for name in
                       ("PR, PER", "ER, acc", "SF, F1", "SF, CER"))  # fmt: skip
    assert pr.startswith("| PR, PER % ↓ | 30.00 | 99.00 | 9.91 | 9.74 | 8.68 | 3.23 | –")
    assert er.startswith("| ER, acc % ↑ | 60.00 | 33.00* | 63.41")
    assert f1.startswith("| SF, F1 % ↑ | – | 81.23 | 87.19") and cer.startswith("| SF, CER % ↓ | – | 40.00 | 28.80")
    assert "\\* ER of b: 1 of 5 folds." in lines
    assert "PR of a: lr1e-02, best on dev of 2." in lines
    assert "SF of b: the last checkpoint was tested." in lines
    found = json.loads((bench.folder / "results.json").read_text())
    assert found["rows"]["a"]["pr"]["choice"] == "lr1e-02" and "2605.06407" in found["published_source"]


def test_a_complete_choice_goes_before_a_better_fold(bench):
    for number in range(1, 6):
        finish(bench, "er", "a", 1e-4, 50, f"fold{number}", acc=50)
    finish(bench, "er", "a", 1e-3, 99, "fold1", acc=99)
    table = results.collect(make_runs(bench, rates=[1e-4, 1e-3]))
    assert table["a"]["er"].choice == "lr1e-04" and table["a"]["er"].scores == {"acc": 50}


def test_the_superb_score(bench, tmp_path, capsys):
    finish(bench, "pr", "a", 1e-2, 20.0, per=40.0)
    finish(bench, "sf", "a", 1e-4, 80.0, f1=80.0, cer=50.0)
    constants = tmp_path / "constants.yaml"
    constants.write_text(
        "source: made up\ndate: 2026-01-01\nfbank: {pr: {per: 80}, sf: {f1: 60, cer: 60}, asv: {eer: 9}}\n"
        "sota: {pr: {per: 0}, sf: {f1: 100, cer: 20}, asv: {eer: 3}}\n"
    )
    path = bench.folder.parent / "bench.yaml"
    code, output, _ = wavcube("score", path, "--constants", constants, capsys=capsys)
    # PR is half way; SF is half way in F1 and a quarter in CER.
    assert code == 0 and re.search(r"^a +437\.5 +over PR, SF$", output, re.MULTILINE)
    assert "made up (2026-01-01)" in output
    code, output, _ = wavcube("score", path, capsys=capsys)
    assert re.search(r"^WavLM-Large \(published\) +1000\.0 +over SE, SS, VC$", output, re.MULTILINE)
    assert re.search(r"^Fbank \(published\) +0\.0 ", output, re.MULTILINE)
    finish(bench, "pr", "b", 1e-2, 20.0, per=80.0)
    code, output, _ = wavcube("score", path, "--between", "b,a", capsys=capsys)
    assert re.search(r"^a +1000\.0 +over PR$", output, re.MULTILINE)
    assert "no row 'c' has results" in error_of("score", path, "--between", "b,c", capsys=capsys)
    constants.write_text("fbank: {pr: {wer: 80}}\nsota: {}\n")
    assert "fbank of pr: expected per" in error_of("score", path, "--constants", constants, capsys=capsys)


def test_packages_that_nothing_stands_in_for_are_named(monkeypatch):
    monkeypatch.setattr(running, "find_spec", lambda name: None if name in ("pesq", "dtw") else object())
    found = running.missing_packages(tasks.TASKS)
    assert found == ["se, ss need pesq: pip install pesq"]


def test_the_corpus_modules_bucket_by_length(small):
    sys.path.insert(0, str(Path(workspace.__file__).parent / "corpus_modules"))
    try:
        import libriphone
        import snips
    finally:
        del sys.path[0]

    class Tokenizer:
        token_type = "character-slot"

        def encode(self, text):
            return list(range(len(text.split())))

    root = small.parent / "corpora"
    lexicon = [root / "libriphone/lexicon.txt"]
    plain = libriphone.LibriPhoneDataset("train.csv", Tokenizer(), 1, lexicon=lexicon, csv_dir=root / "libriphone")
    assert len(plain) == 24 and Path(plain[0][0]).is_file()
    buckets = libriphone.LibriPhoneDataset("train.csv", Tokenizer(), 4, lexicon=lexicon, csv_dir=root / "libriphone")
    assert len(buckets[23]) == 4 and len(buckets[0][0][1]) >= len(buckets[23][3][1])
    settings = {"train_speakers": ["Ivy"], "valid_speakers": ["Amy"], "test_speakers": ["Nobody"]}
    assert len(snips.SnipsDataset(["train"], Tokenizer(), 1, root / "snips", **settings)) == 24
    with pytest.raises(FileNotFoundError, match="no file of the splits test"):
        snips.SnipsDataset(["test"], Tokenizer(), 1, root / "snips", **settings)
