"""The demo: its speech, the folder it runs s3prl in, its report, and the whole of it in its short form."""

import dataclasses
import filecmp
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavcube_plugins.demo import __main__ as demo
from wavcube_plugins.demo import report, superb
from wavcube_plugins.evaluation import Comparison
from wavcube_plugins.s3prl.imports import ModuleFinder
from wavcube_plugins.superb import workspace as copies
from wavcube_plugins.synthetic import make_speech
from wavcube_plugins.synthetic.bundled import FOLDER, Utterance, bundled_speech, split
from wavcube_plugins.synthetic.espeak import EspeakSynthesiser
from wavcube_plugins.synthetic.speech import PHONES

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def utterances():
    return bundled_speech()


# The speech --------------------------------------------------------------------------------------------------------


def test_the_speech_is_what_its_list_says(utterances):
    assert len(utterances) >= 96 and len({utterance.speaker for utterance in utterances}) >= 8
    assert len({utterance.text for utterance in utterances}) == len(utterances)
    for utterance in utterances:
        info = soundfile.info(utterance.path)
        assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
        assert info.duration == pytest.approx(utterance.seconds, abs=0.01)
        assert set(utterance.phones) <= set(PHONES) - {"SIL"}
    assert {path.name for path in FOLDER.iterdir()} == {utterance.path.name for utterance in utterances} | {
        "transcripts.tsv"
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4.5e6
    assert {phone for utterance in utterances for phone in utterance.phones} == set(PHONES) - {"SIL"}


@pytest.mark.parametrize(("speaker", "number"), [(0, 0), (7, 11)])
def test_making_the_speech_again_gives_the_same_samples(utterances, speaker, number):
    who = make_speech.SPEAKERS[speaker]
    with EspeakSynthesiser() as synthesiser:
        waveform, speech = make_speech.say(synthesiser, who, number)
    utterance = next(item for item in utterances if item.name == f"{who.name}_{number + 1:02d}")
    stored, _ = soundfile.read(utterance.path, dtype="int16")
    # Rounding to 16 bits may go either way where a processor multiplies and adds in another order.
    assert np.abs(stored.astype(int) - np.round(waveform.numpy() * 32768)).max() <= 1
    assert utterance.text == who.sentences[number]
    assert utterance.phones == tuple(phone.label for phone in speech.phones if phone.label != "SIL")


def test_levels_are_even_and_nothing_is_clipped(utterances):
    for utterance in utterances:
        samples, _ = soundfile.read(utterance.path)
        assert np.abs(samples).max() == pytest.approx(0.25, abs=0.001)
        assert max(abs(samples[0]), abs(samples[-1])) < 0.02


def test_the_split_shares_speakers_but_no_sentences(utterances):
    parts = split(utterances)
    speakers = {utterance.speaker for utterance in utterances}
    assert all({utterance.speaker for utterance in part} == speakers for part in parts.values())
    assert sum(map(len, parts.values())) == len(utterances)
    texts = [{utterance.text for utterance in part} for part in parts.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_missing_speech_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m wavcube_plugins\.synthetic\.make_speech"):
        bundled_speech(tmp_path)


# The folder the tasks run in ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, utterances):
    folder = tmp_path_factory.mktemp("demo") / "tasks"
    superb.prepare(folder, split(utterances), superb.TASKS)
    return folder


def test_s3prl_is_copied_unmodified(workspace):
    installed = copies.s3prl_folder()
    files = [path.relative_to(installed) for path in installed.rglob("*.py")]
    assert Path("run_downstream.py") in files
    _, different, missing = filecmp.cmpfiles(installed, workspace / "s3prl", map(str, files), shallow=False)
    assert not different and not missing
    copied = {path.relative_to(workspace / "s3prl") for path in (workspace / "s3prl").rglob("*.py")}
    added = copied - set(files)
    assert added <= {Path("downstream/ctc/corpus") / name for name in copies.CORPUS_MODULES}


def test_a_clones_experiments_and_own_corpora_stay_as_they_are(tmp_path):
    clone = tmp_path / "clone"
    for name in ("run_downstream.py", "result/exp/big.ckpt", "data/a.py", "downstream/ctc/corpus/libriphone.py"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text(name)
    copies.copy_s3prl(clone, tmp_path / "copy")
    copied = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")}
    assert copied == {"run_downstream.py", "downstream/ctc/corpus/libriphone.py", "downstream/ctc/corpus/snips.py"}
    assert (tmp_path / "copy/downstream/ctc/corpus/libriphone.py").read_text() == "downstream/ctc/corpus/libriphone.py"


def test_the_lists_name_every_utterance_once_and_the_training_ones_often(workspace, utterances):
    listing = [line.split() for line in (workspace / "data/sid.txt").read_text().splitlines()]
    assert sorted(number for number, _ in listing).count("3") == 30
    assert len({place for _, place in listing}) == len(listing) == len(utterances)
    for _, place in listing:
        assert (workspace / "data/speech/wav" / place).is_file()
        assert 10001 <= int(place.split("/")[0].removeprefix("id")) <= 11251
    rows = {part: (workspace / f"data/pr/{part}.csv").read_text().splitlines()[1:] for part in ("train", "dev", "test")}
    assert len(rows["test"]) == len(set(rows["test"])) == 30
    # More than one epoch would start twelve worker processes each.
    assert len(rows["train"]) >= 8 * 600
    path, phones = rows["test"][0].split(",")
    assert (workspace / path).is_file() and set(phones.split()) <= set(PHONES)


def test_the_commands_are_s3prls_own(workspace):
    runs = superb.plan(workspace, superb.TASKS, "nano")
    assert [run.name for run in runs] == ["sid-wavcube", "sid-fbank", "sid-fbank_no_cmvn", "pr-wavcube", "pr-fbank"]
    train, evaluate = (" ".join(command) for command in runs[0].commands)
    assert train == (
        "python s3prl/run_downstream.py -m train -u wavcube -k nano -d voxceleb1 -c sid.yaml "
        "-p result/sid-wavcube --device cpu"
    )
    assert evaluate == "python s3prl/run_downstream.py -m evaluate -e result/sid-wavcube/dev-best.ckpt --device cpu"


# Running ------------------------------------------------------------------------------------------------------------

TASK = dataclasses.replace(superb.TASKS[0], steps=20, evaluations=2)


def made_up_run(folder, *scripts):
    commands = [["python", "-c", script] for script in scripts]
    return superb.DemoRun(TASK, "wavcube", commands, folder / "made-up.log")


def test_scores_and_curves_are_read_while_processes_run(tmp_path):
    train = (
        "import sys, time\n"
        "sys.stderr.write('overall:  50%|█████     | 10/20 [00:01<00:01,  8it/s]\\r')\n"
        "print('train acc: 0.25\\ndev acc: 0.5')\n"
        "time.sleep(1.2)\n"
        "sys.stderr.write('overall: 100%|██████████| 20/20 [00:02<00:00,  8it/s]\\r')\n"
        "print('train acc: 0.5\\ndev acc: 7.5e-1')"
    )
    # The word tells training from evaluation, as -m does in the real commands.
    run = made_up_run(tmp_path, train, "print('test acc: 0.625')")
    run.commands[0].append("train")
    steps = []
    superb.execute([run], tmp_path, lambda running, ended: steps.extend(item.step for item in running))
    assert run.error == "" and run.score == 0.625
    assert 10 in steps
    assert run.curves["dev"] == [(10, 0.5), (20, 0.75)] and run.curves["train"] == [(10, 0.25), (20, 0.5)]
    assert "test acc" in run.log.read_text()


def test_a_run_that_fails_says_why_and_the_others_go_on(tmp_path):
    broken = made_up_run(tmp_path, "raise SystemExit('the disk is full')")
    silent = made_up_run(tmp_path, "pass")
    silent.log = tmp_path / "silent.log"
    good = made_up_run(tmp_path, "print('test acc: 1.0')")
    good.log = tmp_path / "good.log"
    superb.execute([broken, silent, good], tmp_path, lambda running, ended: None)
    assert broken.error == "exit status 1: the disk is full; the log is made-up.log" and math.isnan(broken.score)
    assert silent.error == "s3prl printed no test acc; the log is silent.log"
    assert good.score == 1.0


def test_an_interrupt_ends_the_processes(tmp_path):
    run = made_up_run(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(60)")

    def interrupt(running, ended):
        if re.search(r"^\d+$", run.log.read_text(), re.MULTILINE):
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        superb.execute([run], tmp_path, interrupt)
    assert time.monotonic() - started < 20
    process = int(re.search(r"^\d+$", run.log.read_text(), re.MULTILINE).group())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_examples_pair_what_was_said_with_what_was_recognised(tmp_path):
    (tmp_path / "test-ref.ark").write_text("b_1 AA B\na_1 K AE T\n")
    (tmp_path / "test-hyp.ark").write_text("b_1 AA\na_1 \n")
    assert superb.read_examples(tmp_path) == [("K AE T", ""), ("AA B", "AA")]
    assert superb.read_examples(tmp_path / "nowhere") == []


# The report ---------------------------------------------------------------------------------------------------------


class References(HTMLParser):
    """Collects everything a page would load, and checks that its elements are closed."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open, self.count = [], [], {}
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.found += [value for name, value in attributes if name in ("src", "href", "data", "srcset", "poster")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def assert_self_contained(page):
    references = References(page)
    assert all(
        value.startswith(("data:audio/wav;base64,", "data:image/png;base64,", "#")) for value in references.found
    )
    text = without_data(page)
    assert not any(word in text for word in ("http", "url(", "@import", "<script"))
    return references


def without_data(page):
    return re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)


def findings(trained, *, error=""):
    utterance = Utterance(Path("adam_01.flac"), "adam", 2.0, "Fish & <chips>.", ("F",))
    comparison = Comparison(0.9, math.nan, math.inf, 0.5, 2.0, ())
    runs = superb.plan(Path("tasks"), superb.TASKS, "nano")
    for run in runs:
        run.score, run.curves, run.examples = 0.5, {"dev": [(10, 0.25), (20, 0.5)]}, [("AA <B>", "AA")]
    runs[-1].error = error
    return report.Findings(
        model="nano",
        trained=trained,
        model_facts={"parameters": "8 million"},
        reconstructions=[report.Reconstruction(utterance, b"RIFF", b"RIFF", b"PNG", comparison)],
        speed=3.0,
        runs=runs,
        test_sizes=(30, 10),
        workspace="demo_output/tasks",
        facts={"machine": "a <machine>"},
    )


def test_the_report_needs_no_other_file():
    references = assert_self_contained(report.render(findings(True)))
    assert references.count["audio"] == 2 and references.count["img"] == 3 and references.count["h2"] == 4


def test_the_report_says_loudly_that_weights_are_untrained():
    page = report.render(findings(False))
    assert "These weights are untrained" in page and "WavCube, untrained" in page
    assert "untrained" not in report.render(findings(True))


def test_the_report_shows_failures_and_undefined_scores_and_escapes_text():
    page = report.render(findings(True, error="exit status 1: no <memory>"))
    assert "exit status 1: no &lt;memory&gt;" in page and "failed" in page
    assert "<td>–</td>" in page and "<td>inf</td>" in page
    assert "Fish &amp; &lt;chips&gt;." in page and "a &lt;machine&gt;" in page and "AA &lt;B&gt;" in page
    assert "nan" not in without_data(page).replace("nano", "")


# The command --------------------------------------------------------------------------------------------------------


def run_demo(*arguments, **settings):
    command = [sys.executable, "-m", "wavcube_plugins.demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **settings)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text and "--quick" in text and "exit codes" in text


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--steps", "many"], ["--stpes", "3"]])
def test_mistyped_arguments_exit_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(arguments)
    assert stop.value.code == 2


def test_a_folder_with_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert "holds something other than the output of a demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert demo.main(["--out", str(tmp_path / "thesis.txt")]) == 2


def test_without_s3prl_the_demo_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(copies.importlib.util, "find_spec", lambda name: None)
    assert demo.main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == (
        "python -m wavcube_plugins.demo: error: s3prl is not installed in this Python; "
        "from a clone: pip install '.[s3prl]'\n"
    )


def test_without_the_hook_the_demo_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WAVCUBE_S3PRL_HOOK", "0")
    monkeypatch.setattr(sys, "meta_path", [one for one in sys.meta_path if not isinstance(one, ModuleFinder)])
    assert demo.main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.endswith("s3prl does not know -u wavcube here; run: wavcube install-s3prl\n")


def test_an_unknown_model_is_one_line(tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path / "out"), "--model", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nowhere" in error


def test_the_whole_demo_in_its_short_form(tmp_path):
    out = tmp_path / "out"
    installed = copies.s3prl_folder()
    before = {path: path.stat().st_mtime_ns for path in installed.rglob("*") if "__pycache__" not in path.parts}
    # What an earlier demo left is replaced.
    (out / "tasks").mkdir(parents=True)
    (out / ".wavcube_demo").touch()
    (out / "tasks" / "old.log").touch()
    result = run_demo("--out", "out", "--quick", "--model", "nano", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not (out / "tasks" / "old.log").exists()

    results = json.loads((out / "results.json").read_text())
    assert sorted(results["tasks"]) == ["pr-fbank", "pr-wavcube", "sid-fbank", "sid-wavcube"]
    for name, task in results["tasks"].items():
        assert task["error"] is None and 0 <= task["test"] < 10, name
        assert [step for step, _ in task["dev"]] == [4, 8]
    page = (out / "report.html").read_text()
    references = assert_self_contained(page)
    assert references.count["audio"] == 4 and references.count["img"] == 4
    assert "run_downstream.py -m train -u wavcube -k nano -d ctc" in page
    assert str(tmp_path) not in page
    for name in results["reconstruction"]:
        given, made = (soundfile.info(out / "reconstruction" / f"{name}.{kind}.wav") for kind in ("input", "output"))
        assert given.frames == made.frames and made.samplerate == 16000
    assert ("UNTRAINED" in result.stdout) == ("untrained" in page) == (not results["trained"])
    for score in re.findall(r"(?:accuracy|phone error rate) ([\d.]+) %", result.stdout):
        assert f"{score} %" in page
    # Nothing was written into the installed package.
    after = {path: path.stat().st_mtime_ns for path in installed.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


def test_a_terminated_demo_leaves_no_process_behind(tmp_path):
    command = [sys.executable, "-m", "wavcube_plugins.demo", "--out", "out", "--quick"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "tasks" / "sid-fbank.log"
    limit = time.monotonic() + 120
    while not log.is_file() and time.monotonic() < limit:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in error
    if shutil.which("pgrep"):
        assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).returncode == 1
