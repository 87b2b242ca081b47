"""What was there before and what is there now, what cannot be seen, and bad items among good ones."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from wavcube_plugins import cli, load_model
from wavcube_plugins.audio import AudioWarning, find_audio
from wavcube_plugins.data.extraction import extract
from wavcube_plugins.data.manifest_writing import write_manifest
from wavcube_plugins.data.manifests import Manifest, list_utterances, read_manifest
from wavcube_plugins.data.utterance import Utterance

pytestmark = pytest.mark.filterwarnings("ignore:.*UNTRAINED")


@pytest.fixture(scope="module")
def model():
    with pytest.warns(UserWarning, match="UNTRAINED"):
        return load_model("tiny")


def noise(seed=0, samples=8000):
    return np.random.default_rng(seed).normal(scale=0.1, size=samples)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with three recordings in corpus/."""
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    for seed, name in enumerate("abc"):
        soundfile.write(f"corpus/{name}.wav", noise(seed), 16000)
    return tmp_path


def run(capsys, *arguments, code=0):
    assert cli.main([*map(str, arguments), *(["--model", "tiny"] if arguments[0] != "manifest" else [])]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured


def latent(model, path):
    waveform = Utterance("x", str(path)).read(16000)
    with torch.inference_mode():
        return model.encode(waveform[None])[0][0].numpy()


# Sources that change --------------------------------------------------------------------------------------------------


def test_what_changed_is_made_anew_and_counted(model, folder, capsys):
    run(capsys, "extract", "corpus", "out")
    soundfile.write("corpus/b.wav", noise(7), 16000)  # another recording of the same size
    os.utime("corpus/b.wav", ns=(1, 10**18))
    out = run(capsys, "extract", "corpus", "out").out
    assert "1 utterance extracted" in out and "2 were there already" in out
    assert "1 source changed since the last run, made anew" in out
    for name in "abc":
        np.testing.assert_allclose(np.load(f"out/npy/{name}.npy"), latent(model, f"corpus/{name}.wav"), atol=2e-3)
    out = run(capsys, "extract", "corpus", "out").out
    assert "0 utterances extracted; 3 were there already" in out and "changed" not in out
    assert len(Path("out/index.jsonl").read_text().splitlines()) == 3


def test_a_file_that_was_still_being_copied_is_made_anew(model, folder):
    whole = Path("corpus/a.wav").read_bytes()
    utterances = read_manifest("corpus")
    Path("corpus/a.wav").write_bytes(whole[:100])
    extract(model, utterances, "out")
    Path("corpus/a.wav").write_bytes(whole)
    extract(model, utterances, "out")
    np.testing.assert_allclose(np.load("out/npy/a.npy"), latent(model, "corpus/a.wav"), atol=2e-3)


def test_a_file_that_changes_while_it_is_read_is_refused(model, folder, monkeypatch):
    read = Utterance.read

    def changing(utterance, sample_rate):
        waveform = read(utterance, sample_rate)
        if utterance.id == "a":
            os.utime(utterance.source)
        return waveform

    monkeypatch.setattr(Utterance, "read", changing)
    result = extract(model, read_manifest("corpus"), "out")
    assert list(result.failed) == ["a"] and "changed while it was read" in result.failed["a"]
    monkeypatch.undo()
    os.chdir(folder)
    assert extract(model, read_manifest("corpus"), "out").extracted == 1


def test_an_outdated_latent_is_not_taken_for_the_new_one_after_a_kill(model, folder, monkeypatch):
    """Both have the same size, and the note of the new one is on disk before its latent."""
    utterances = read_manifest("corpus")
    extract(model, utterances, "out")
    soundfile.write("corpus/b.wav", noise(7), 16000)
    replace = os.replace

    def killed(temporary, path):
        if str(path).endswith("b.npy"):
            raise KeyboardInterrupt
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        extract(model, utterances, "out")
    monkeypatch.setattr(os, "replace", replace)
    assert extract(model, utterances, "out").extracted == 1
    np.testing.assert_allclose(np.load("out/npy/b.npy"), latent(model, "corpus/b.wav"), atol=2e-3)


def test_the_newest_note_counts_whoever_made_it(model, folder):
    utterances = read_manifest("corpus")
    extract(model, utterances, "out", rank=0, world_size=1)
    soundfile.write("corpus/a.wav", noise(7), 16000)
    for rank in range(3):
        result = extract(model, utterances, "out", rank=rank, world_size=3)
        assert result.changed == (1 if rank == 0 else 0)
    soundfile.write("corpus/a.wav", noise(8), 16000)
    for rank in range(2):
        extract(model, utterances, "out", rank=rank, world_size=2)
    result = extract(model, utterances, "out")
    assert (result.extracted, result.resumed, result.changed) == (0, 3, 0)
    np.testing.assert_allclose(np.load("out/npy/a.npy"), latent(model, "corpus/a.wav"), atol=2e-3)


def test_sources_that_are_gone_keep_their_latents(model, folder):
    utterances = read_manifest("corpus")
    extract(model, utterances, "out")
    Path("corpus/a.wav").unlink()
    result = extract(model, utterances, "out")
    assert (result.resumed, result.failed) == (3, {})


def test_folders_of_earlier_versions_go_on(model, folder):
    """They noted no times and sizes: a latent that is older than its source is made anew."""
    utterances = read_manifest("corpus")
    extract(model, utterances, "out")
    for path in (Path("out/index.jsonl"), *Path("out/parts").glob("done.*")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [{key: value for key, value in one.items() if key not in ("stamp", "time")} for one in records]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert extract(model, utterances, "out").resumed == 3
    soundfile.write("corpus/c.wav", noise(7), 16000)
    os.utime("corpus/c.wav", ns=(4 * 10**18, 4 * 10**18))
    result = extract(model, utterances, "out")
    assert (result.resumed, result.changed) == (2, 1)


# What a walk cannot see -----------------------------------------------------------------------------------------------


@pytest.fixture
def hidden(folder):
    """Three good recordings among what cannot be searched or is not read."""
    corpus = folder / "corpus"
    (corpus / "gone.wav").symlink_to("nowhere.wav")
    (corpus / "disk2").symlink_to("/mnt/not/mounted")
    for name in ("S001.WV1", "d.m4a", "e.wav.gz", "f.wav~"):
        (corpus / name).write_bytes(b"x")
    for name in ("notes.txt", "a.lab", "README", ".hidden.wv1", "a.json"):
        (corpus / name).write_bytes(b"x")
    (corpus / "link.txt").symlink_to("nowhere")
    return corpus


SEEN = {"gone.wav", "disk2", "S001.WV1", "d.m4a", "e.wav.gz", "f.wav~"}


def test_a_walk_says_what_it_cannot_see(hidden):
    overlooked = []
    found = find_audio(hidden, lambda path, reason: overlooked.append((path.name, reason)))
    assert [path.name for path in found] == ["a.wav", "b.wav", "c.wav"]
    assert {name for name, _ in overlooked} == SEEN and len(overlooked) == 6
    reasons = dict(overlooked)
    assert reasons["gone.wav"] == reasons["disk2"] == "a broken link"
    assert reasons["S001.WV1"] == "the suffix .WV1 is not read"
    for search in (find_audio, Manifest):
        with pytest.warns(AudioWarning, match=r"6 paths left out of the search: .*, and 3 more"):
            search(hidden)
    (hidden / "only").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        soundfile.write(hidden / "only" / "a.wav", noise(), 16000)
        assert len(find_audio(hidden / "only")) == 1


def test_commands_tell_by_a_line_and_their_exit_code(hidden, capsys):
    for words in (["extract", "corpus", "out"], ["manifest", "corpus", "m.jsonl"], ["encode", "corpus", "-o", "enc"]):
        err = run(capsys, *words, code=1).err
        [line] = [line for line in err.splitlines() if "left out of the search" in line]
        assert line.startswith("wavcube: 6 paths left out of the search: ") and line.endswith(", and 3 more")
    assert len(list(Path("out/npy").iterdir())) == len(list(Path("enc").iterdir())) == 3
    assert len(Path("m.jsonl").read_text().splitlines()) == 3


def test_a_folder_of_which_nothing_is_read_names_what_there_is(folder, capsys):
    Path("wsj").mkdir()
    Path("wsj/S001.WV1").write_bytes(b"x")
    for words in (["extract", "wsj", "out"], ["manifest", "wsj", "m.jsonl"], ["encode", "wsj", "-o", "enc"]):
        err = run(capsys, *words, code=2).err
        assert "no audio files in this folder" in err and "S001.WV1 (the suffix .WV1 is not read)" in err


def test_a_folder_that_cannot_be_listed_is_named(folder, capsys):
    # Deeper than a path may be long, which stops even root.
    parent = os.open("corpus", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 240, dir_fd=parent)
        child = os.open("d" * 240, os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = child
    os.close(parent)
    err = run(capsys, "extract", "corpus", "out", code=1).err
    assert "1 path left out of the search: corpus/ddd" in err and "cannot be listed, file name too long" in err
    assert len(list(Path("out/npy").iterdir())) == 3


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_without_permission_is_named(folder, capsys):
    Path("corpus/closed").mkdir(mode=0o000)
    err = run(capsys, "extract", "corpus", "out", code=1).err
    assert "corpus/closed (cannot be listed, permission denied)" in err


# Bad items among good ones --------------------------------------------------------------------------------------------


def test_odd_ids_and_paths_do_not_stop_the_rest(model, folder, capsys):
    good = str(folder / "corpus" / "a.wav")
    Path("corpus/with\ttab\nand line.wav").write_bytes(b"not audio")
    entries = [
        {"id": "good", "path": good},
        {"id": "nul\0inside", "path": good},
        {"id": "half \ud800 character", "path": good},
        {"id": "x", "path": "nul\0inside.wav"},
        {"id": "y", "path": "half \udfff.wav"},
        {"id": "n" * 240, "path": good},
        {"id": "../up", "path": good},
        {"id": "taken", "path": good},
        {"id": "taken.npy/below", "path": good},
        {"id": "table", "path": "corpus/with\ttab\nand line.wav"},
        {"id": "good", "path": str(folder / "corpus" / "b.wav")},
        {"id": "last", "path": good},
    ]
    Path("m.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    err = run(capsys, "extract", "m.jsonl", "out", code=1).err
    assert "of 12 utterances failed" in err
    done = {json.loads(line)["id"] for line in Path("out/index.jsonl").read_text().splitlines()}
    assert {"good", "last"} < done
    assert len(done & {"taken", "taken.npy/below"}) == 1  # the one that came first
    table = [line.split("\t") for line in Path("out/failed.tsv").read_text().split("\n")]
    assert table.pop() == [""]
    assert all(len(fields) == 3 for fields in table)
    rows = {name: (source, reason) for name, source, reason in table[1:]}
    assert len(rows) == 9
    assert rows["table"][0] == str(folder / "corpus") + r"/with\ttab\nand line.wav"
    assert "characters that no file name can have" in rows["entry 2"][1]
    assert "characters that no file name can have" in rows["entry 4"][1]
    assert "longer than a file name may be" in rows["entry 6"][1]
    assert "the id 'good' stands for both" in rows["good (entry 11)"][1]
    [taken] = {"taken", "taken.npy/below"} - done
    assert "cannot be written" in rows[taken][1]

    err = run(capsys, "manifest", "m.jsonl", "new.jsonl", code=1).err
    assert "8 of 12 entries cannot be used" in err
    assert [json.loads(line)["id"] for line in Path("new.jsonl").read_text().splitlines()] == [
        "good", "taken", "taken.npy/below", "last",
    ]  # fmt: skip
    # And again, with nothing left but what failed.
    assert "3 were there already" in run(capsys, "extract", "m.jsonl", "out", code=1).out


def test_long_names_in_a_folder(model, folder, capsys):
    Path("corpus/a.wav").rename(f"corpus/{'n' * 240}.wav")
    err = run(capsys, "extract", "corpus", "out", code=1).err
    assert "1 of 3 utterances failed" in err and "longer than a file name may be" in err
    run(capsys, "encode", "corpus", "-o", "latents")
    assert Path(f"latents/{'n' * 240}.npy").is_file()
    # With its suffix this one is too long.
    run(capsys, "reconstruct", "corpus", "-o", "heard")
    Path("corpus/b.wav").rename(f"corpus/{'m' * 251}.wav")
    err = run(capsys, "reconstruct", *Path("corpus").iterdir(), code=1).err
    assert "1 of 3 files failed" in err and "file name too long" in err
    err = run(capsys, "reconstruct", f"corpus/{'m' * 251}.wav", code=2).err
    assert "file name too long" in err


def test_a_manifest_of_which_nothing_can_be_used_is_bad_input(folder, capsys):
    Path("m.jsonl").write_text('{"id": "a\\u0000", "path": "corpus/a.wav"}\n')
    err = run(capsys, "extract", "m.jsonl", "out", code=2).err
    assert "m.jsonl, line 1: the id 'a\\x00' has characters that no file name can have" in err
    assert not Path("out").exists()
    assert len(list_utterances("m.jsonl").failed) == 1


def test_manifests_from_a_pipe(folder):
    program = (
        "from wavcube_plugins.data.manifest_writing import write_manifest\n"
        "print(write_manifest('/dev/stdin', 'm.jsonl').written)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="corpus/a.wav\ncorpus/b.wav\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "2\n", done.stderr
    with pytest.raises(ValueError, match="a pipe or a device"):
        reader, writer = os.pipe()
        try:
            Manifest(f"/dev/fd/{reader}")
        finally:
            os.close(reader), os.close(writer)


def test_a_written_manifest_of_all_is_what_the_folder_lists(folder):
    assert write_manifest("corpus", "m.jsonl").overlooked == []
    assert read_manifest("m.jsonl") == read_manifest("corpus")
