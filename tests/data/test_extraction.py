"""Latents of a corpus: manifests, batches, failures, resuming after a kill, several processes."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import soundfile
import torch

from wavcube_plugins import load_model
from wavcube_plugins.data import extraction
from wavcube_plugins.data.extraction import extract
from wavcube_plugins.data.latent_folder import ExtractionError, LatentFolder
from wavcube_plugins.data.manifests import read_manifest
from wavcube_plugins.data.utterance import ManifestError, Utterance

pytestmark = pytest.mark.filterwarnings("ignore:.*UNTRAINED")


@pytest.fixture(scope="module")
def model():
    with pytest.warns(UserWarning, match="UNTRAINED"):
        return load_model("tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve noisy tones of 20 ms to 2.2 s, in two folders, at two sample rates, one of them in stereo."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    for index in range(12):
        rate = 22050 if index == 3 else 16000
        samples = random.normal(scale=0.1, size=(round(rate * (0.02 + 0.2 * index)), 2 if index == 5 else 1))
        path = folder / f"speaker{index % 2}" / f"utterance {index}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, samples, rate)
    return folder


def lines(path):
    return path.read_text().splitlines()


def index_of(folder):
    return {entry["id"]: entry for entry in map(json.loads, lines(folder / "index.jsonl"))}


def run_cli(*arguments, code="from wavcube_plugins.cli import main", **environment):
    """Start the command in a process of its own; `code` may change something in it before."""
    # Under nohup, or in the background of a script, Ctrl-C is ignored and children inherit that.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"import sys\n{heard}\n{code}\nfrom wavcube_plugins.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# What is written ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::wavcube_plugins.audio.AudioWarning")
@pytest.mark.parametrize("window", [None, 1.0])
def test_each_latent_is_what_encoding_its_file_alone_gives(model, corpus, tmp_path, window):
    utterances = read_manifest(corpus)
    result = extract(model, utterances, tmp_path, batch_seconds=3, window_seconds=window)
    assert (result.extracted, result.resumed, result.failed, result.missing) == (12, 0, {}, 0)
    index = index_of(tmp_path)
    for utterance in utterances:
        waveform = utterance.read(16000)
        with torch.inference_mode():
            expected, lengths = model.encode(waveform[None], window_seconds=window)
        latent = np.load(tmp_path / "npy" / f"{utterance.id}.npy")
        assert latent.dtype == np.float16
        np.testing.assert_allclose(latent, expected[0].numpy(), rtol=1e-3, atol=2e-4)
        entry = index[utterance.id]
        assert entry["path"] == f"npy/{utterance.id}.npy"
        assert entry["source"] == utterance.source
        assert entry["samples"] == len(waveform)
        assert entry["seconds"] == pytest.approx(len(waveform) / 16000, abs=1e-4)
        assert (entry["frames"], entry["dim"]) == latent.shape == (int(lengths), 16)
    assert result.seconds == pytest.approx(sum(entry["seconds"] for entry in index.values()), abs=0.01)


@pytest.mark.filterwarnings("ignore::wavcube_plugins.audio.AudioWarning")
def test_espnet_reads_the_lists(model, corpus, tmp_path):
    extract(model, read_manifest(corpus), tmp_path)
    scp = dict(line.split(maxsplit=1) for line in lines(tmp_path / "feats.scp"))
    shapes = dict(line.split() for line in lines(tmp_path / "feats_shape"))
    assert list(scp) == list(shapes) == sorted(index_of(tmp_path), key=os.fsencode)
    assert len(scp) == 12
    assert "speaker1/utterance_11" in scp  # an id with a blank would end there for Kaldi
    for name, path in scp.items():
        assert os.path.isabs(path)
        assert shapes[name] == "{},{}".format(*np.load(path).shape)
    fileio = pytest.importorskip("espnet2.fileio.npy_scp", reason="ESPnet is an extra", exc_type=ImportError)
    reader = fileio.NpyScpReader(str(tmp_path / "feats.scp"))
    assert reader["speaker1/utterance_11"].shape[1] == 16


@pytest.mark.filterwarnings("ignore::wavcube_plugins.audio.AudioWarning")
def test_batches_hold_similar_lengths_and_keep_to_their_budget(model, corpus, tmp_path, monkeypatch):
    shapes, encode = [], model.encode

    def watched(waveforms, lengths, **options):
        shapes.append((tuple(waveforms.shape), int(lengths.sum())))
        return encode(waveforms, lengths, **options)

    monkeypatch.setattr(model, "encode", watched)
    extract(model, read_manifest(corpus), tmp_path, batch_seconds=4)
    assert sum(size for (size, _), _ in shapes) == 12
    assert all(size * longest <= 4 * 16000 for (size, longest), _ in shapes)
    assert len(shapes) <= 6
    padded = sum(size * longest for (size, longest), _ in shapes)
    assert sum(valid for _, valid in shapes) > 0.75 * padded


def test_one_long_utterance_makes_a_batch_alone(model, corpus, tmp_path):
    utterances = [Utterance("long", str(corpus / "speaker0" / "utterance 10.wav"))]
    assert extract(model, utterances, tmp_path, batch_seconds=0.5).extracted == 1


def test_parts_of_a_file(model, corpus, tmp_path):
    source = str(corpus / "speaker1" / "utterance 11.wav")
    extract(model, [Utterance("part", source, 0.5, 1.0), Utterance("rest", source, 1.5)], tmp_path)
    waveform = Utterance("whole", source).read(16000)
    for name, part in {"part": waveform[8000:24000], "rest": waveform[24000:]}.items():
        with torch.inference_mode():
            expected, _ = model.encode(part[None])
        np.testing.assert_allclose(np.load(tmp_path / "npy" / f"{name}.npy"), expected[0], rtol=1e-3, atol=2e-4)
    assert index_of(tmp_path)["part"]["start"] == 0.5


def test_very_many_flat_ids_are_spread_over_folders(model, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "MANY", 5)
    source = str(corpus / "speaker0" / "utterance 2.wav")
    utterances = [Utterance(f"u{number}", source) for number in range(6)]
    extract(model, utterances, tmp_path)
    paths = {name: entry["path"] for name, entry in index_of(tmp_path).items()}
    assert all(path.count("/") == 2 and path.endswith(f"/{name}.npy") for name, path in paths.items())
    assert len({path.split("/")[1] for path in paths.values()}) > 1
    assert extract(model, utterances, tmp_path).resumed == 6


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """Three good files among six that cannot be used."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    noise = np.random.default_rng(0).normal(scale=0.1, size=8000)
    for name in ("good1", "good2"):
        soundfile.write(folder / f"{name}.wav", noise, 16000)
    soundfile.write(folder / "silent.wav", np.zeros(4000), 16000)
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    soundfile.write(folder / "nan.wav", np.where(np.arange(8000) == 7000, np.nan, noise), 16000, "FLOAT")
    (folder / "text.wav").write_text("not audio")
    (folder / "nothing.flac").touch()
    soundfile.write(folder / "cut.flac", noise, 16000)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:5000])
    (folder / "dangling.txt").symlink_to(folder / "nowhere")
    return folder


def test_bad_files_are_listed_and_do_not_stop_the_run(model, mixed, tmp_path):
    utterances = [*read_manifest(mixed), Utterance("gone", str(mixed / "gone.wav"))]
    result = extract(model, utterances, tmp_path / "out")
    assert set(index_of(tmp_path / "out")) == {"good1", "good2", "silent"}
    assert (result.extracted, result.missing) == (3, 0)
    reasons = {
        "empty": "no samples",
        "nan": "NaN",
        "text": "not readable as audio",
        "nothing": "not readable as audio",
        "cut": "cut short",
        "gone": "no such file",
    }
    assert set(result.failed) == set(reasons)
    table = [line.split("\t") for line in lines(tmp_path / "out" / "failed.tsv")]
    assert table[0] == ["id", "source", "reason"]
    for name, source, reason in table[1:]:
        assert source.startswith(str(mixed / name))
        assert reasons.pop(name) in reason
    assert not reasons


def test_failures_are_tried_again(model, mixed, tmp_path):
    utterances = read_manifest(mixed)
    assert set(extract(model, utterances, tmp_path / "out").failed) == {"empty", "nan", "text", "nothing", "cut"}
    for name in ("empty.wav", "nan.wav", "text.wav", "nothing.flac"):
        soundfile.write(mixed / name, np.zeros(4000), 16000)
    result = extract(model, utterances, tmp_path / "out")
    assert (result.extracted, result.resumed, set(result.failed)) == (4, 3, {"cut"})
    assert len(lines(tmp_path / "out" / "failed.tsv")) == 2
    soundfile.write(mixed / "cut.flac", np.zeros(4000), 16000)
    assert extract(model, utterances, tmp_path / "out").failed == {}
    assert not (tmp_path / "out" / "failed.tsv").exists()


def test_failures_of_earlier_runs_are_forgotten(model, mixed, tmp_path):
    good = Utterance("good1", str(mixed / "good1.wav"))
    gone = Utterance("gone", str(mixed / "gone.wav"))
    assert set(extract(model, [good, gone], tmp_path / "out", rank=1, world_size=2).failed) == {"gone"}
    assert (tmp_path / "out" / "failed.tsv").exists()
    assert extract(model, [good], tmp_path / "out", rank=0, world_size=1).failed == {}
    assert not (tmp_path / "out" / "failed.tsv").exists()
    # Its next attempt is still to come: the failure of the last one does not settle it.
    assert extract(model, [good, gone], tmp_path / "out", rank=0, world_size=2).missing == 1


@pytest.mark.filterwarnings("ignore::wavcube_plugins.audio.AudioWarning")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("no")])
def test_a_batch_that_fails_is_halved_down_to_the_utterance_at_fault(model, corpus, tmp_path, monkeypatch, error):
    encode = model.encode

    def limited(waveforms, lengths, **options):
        if waveforms.shape[0] > 2 or waveforms.shape[1] > 2 * 16000:
            raise error
        return encode(waveforms, lengths, **options)

    monkeypatch.setattr(model, "encode", limited)
    result = extract(model, read_manifest(corpus), tmp_path)
    # Ten and eleven are longer than 2 s.
    assert set(result.failed) == {"speaker0/utterance_10", "speaker1/utterance_11"}
    assert ("more memory" in result.failed["speaker1/utterance_11"]) == isinstance(error, torch.OutOfMemoryError)
    assert result.extracted == 10


def test_the_tensors_that_did_not_fit_are_gone_when_it_tries_again(model, corpus, tmp_path, monkeypatch):
    held, alive, encode = [], [], model.encode

    def limited(waveforms, lengths, **options):
        alive.append(sum(reference() is not None for reference in held))
        work = waveforms.clone()
        held.extend(map(weakref.ref, (waveforms, work)))
        if waveforms.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(waveforms, lengths, **options)

    monkeypatch.setattr(model, "encode", limited)
    source = str(corpus / "speaker0" / "utterance 2.wav")
    result = extract(model, [Utterance(name, source) for name in "abcd"], tmp_path)
    assert (result.extracted, result.failed) == (4, {})
    assert alive == [0] * 7  # of four, two, one, one, two, one and one


def test_latents_that_are_not_finite_are_failures(model, corpus, tmp_path, monkeypatch):
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *args, **options: (encode(*args, **options)[0] * 1e9, args[1] // 320))
    source = str(corpus / "speaker0" / "utterance 2.wav")
    result = extract(model, [Utterance("loud", source)], tmp_path)
    assert "NaN or infinite" in result.failed["loud"]
    assert not (tmp_path / "npy").exists()


def test_an_error_that_is_not_the_datas_stops_the_run(model, corpus, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(model, "encode", broken)
    with pytest.raises(RuntimeError, match="device-side"):
        extract(model, [Utterance("a", str(corpus / "speaker0" / "utterance 2.wav"))], tmp_path)


# Resuming -------------------------------------------------------------------------------------------------------------

# Reading takes its time, so that the process is killed in the middle of the run and not after it.
SLOWLY = """
import time
from wavcube_plugins.data import extraction
read = extraction.Utterance.read
def slowly(*arguments):
    time.sleep(0.1)
    return read(*arguments)
extraction.Utterance.read = slowly
"""


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    noise = np.random.default_rng(0).normal(scale=0.1, size=8000)
    for number in range(40):
        soundfile.write(folder / f"{number:02}.wav", noise[: 4000 + 50 * number], 16000)
    return folder


def wait_for_latents(process, folder, count):
    deadline = time.monotonic() + 120
    while len(list(folder.rglob("npy/[0-9]*.npy"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no latents came"
        time.sleep(0.01)


def test_a_killed_run_goes_on_without_redoing_or_losing_anything(many, tmp_path):
    out = tmp_path / "out"
    arguments = ("extract", many, out, "--model", "tiny", "--batch-seconds", "1", "--workers", "1")
    process = run_cli(*arguments, code=SLOWLY)
    wait_for_latents(process, out, 5)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    written = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("npy/[0-9]*.npy")}
    assert 5 <= len(written) < 40
    assert not (out / "index.jsonl").exists()
    # What a kill at the worst moment leaves besides: half a line, half a file, and a note without its file.
    note = {"id": "39", "path": "npy/39.npy", "source": "", "frames": 1, "dim": 16, "bytes": 160}
    with (out / "parts" / "done.0-of-1.jsonl").open("a") as file:
        file.write(json.dumps({**note, "source": str(many / "39.wav")}) + '\n{"id": "38", "pa')
    (out / "npy" / ".38.1234.tmp.npy").write_bytes(b"half")

    process = run_cli(*arguments)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    # 39 may have been among the written ones, but its note above says that another size is right.
    redone = {path for path, stamp in written.items() if stamp != (path.stat().st_ino, path.stat().st_mtime_ns)}
    assert redone <= {out / "npy" / "39.npy"}
    assert f"{40 - len(written) + len(redone)} utterances extracted" in stdout
    assert sorted(index_of(out)) == [f"{number:02}" for number in range(40)]
    for entry in index_of(out).values():
        assert np.load(out / entry["path"]).shape == (entry["frames"], 16)
    assert len(lines(out / "feats.scp")) == 40
    assert not list(out.rglob(".*"))


def test_the_run_after_ctrl_c_goes_on(many, tmp_path):
    out = tmp_path / "out"
    arguments = ("extract", many, out, "--model", "tiny", "--batch-seconds", "1", "--workers", "1")
    process = run_cli(*arguments, code=SLOWLY)
    wait_for_latents(process, out, 3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.rstrip().endswith("interrupted")
    assert "Traceback" not in stderr
    done = len(list(out.rglob("npy/[0-9]*.npy")))
    assert 3 <= done < 40
    process = run_cli(*arguments)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert f"{done} were there already" in stdout
    assert len(index_of(out)) == 40


def test_lost_and_damaged_latents_are_made_again(model, corpus, tmp_path):
    utterances = [
        Utterance(f"u{number}", str(corpus / f"speaker{number % 2}" / f"utterance {number}.wav")) for number in range(3)
    ]
    extract(model, utterances, tmp_path)
    whole = (tmp_path / "npy" / "u1.npy").read_bytes()
    (tmp_path / "npy" / "u1.npy").write_bytes(whole[:-1])
    (tmp_path / "npy" / "u2.npy").unlink()
    result = extract(model, utterances, tmp_path)
    assert (result.extracted, result.resumed) == (2, 1)
    assert (tmp_path / "npy" / "u1.npy").read_bytes() == whole
    assert len(index_of(tmp_path)) == 3


def test_a_folder_grows_with_its_manifest(model, corpus, tmp_path):
    utterances = [Utterance(name, str(corpus / "speaker0" / "utterance 2.wav")) for name in ("b", "a", "c")]
    extract(model, utterances[:1], tmp_path)
    result = extract(model, utterances[1:], tmp_path)
    assert (result.extracted, result.resumed) == (2, 0)
    assert [line.split()[0] for line in lines(tmp_path / "feats.scp")] == ["a", "b", "c"]


def test_other_settings_are_refused_by_naming_both(model, corpus, tmp_path):
    utterances = [Utterance("a", str(corpus / "speaker0" / "utterance 2.wav"))]
    extract(model, utterances, tmp_path, model_name="tiny")
    before = (tmp_path / "index.jsonl").read_bytes()

    with pytest.raises(ExtractionError, match=r"window seconds None, this run has 30\.0"):
        extract(model, utterances, tmp_path, window_seconds=30.0, model_name="tiny")
    other = load_model("tiny", dtype=torch.bfloat16)
    with pytest.raises(ExtractionError, match="dtype float32, this run has bfloat16"):
        extract(other, utterances, tmp_path, model_name="tiny")
    other = load_model("tiny")
    with torch.no_grad():
        other.compressor.projection[0].bias[0] += 1
    with pytest.raises(ExtractionError, match=r"weights 'tiny' \(\w+\), this run has 'changed' \(\w+\)"):
        extract(other, utterances, tmp_path, model_name="changed")
    moved = [Utterance("a", str(corpus / "speaker1" / "utterance 3.wav"))]
    with pytest.raises(ExtractionError, match=r"'a' from .*utterance 2\.wav, this run has it from .*utterance 3\.wav"):
        extract(model, moved, tmp_path, model_name="tiny")
    assert (tmp_path / "index.jsonl").read_bytes() == before

    # The decoder has no part in the latent, and the model may go by another name.
    other = load_model("tiny")
    with torch.no_grad():
        other.decoder.upsample_proj.bias[0] += 1
    assert extract(other, utterances, tmp_path, model_name="elsewhere").resumed == 1


def test_settings_that_made_no_latent_bind_nobody(model, corpus, tmp_path):
    utterances = [Utterance("a", str(corpus / "speaker0" / "utterance 2.wav"))]
    with pytest.raises(ValueError, match="window_seconds must be at least"):
        extract(model, utterances, tmp_path / "out", window_seconds=0.1)
    assert not (tmp_path / "out").exists()
    gone = [Utterance("a", str(tmp_path / "gone.wav"))]
    assert extract(model, gone, tmp_path, window_seconds=30.0).failed
    assert extract(model, utterances, tmp_path).extracted == 1
    assert json.loads((tmp_path / "settings.json").read_text())["window_seconds"] is None
    with pytest.raises(ExtractionError, match=r"window seconds None, this run has 30\.0"):
        extract(model, gone, tmp_path, window_seconds=30.0)


def test_a_run_whose_settings_were_replaced_writes_nothing(model, corpus, tmp_path, monkeypatch):
    read = Utterance.read

    def replaced(utterance, sample_rate):
        LatentFolder(tmp_path).claim(settings(model, 30.0), "other")
        return read(utterance, sample_rate)

    settings = extraction._settings
    monkeypatch.setattr(Utterance, "read", replaced)
    utterances = [Utterance("a", str(corpus / "speaker0" / "utterance 2.wav"))]
    with pytest.raises(ExtractionError, match=r"window seconds 30\.0, this run has None"):
        extract(model, utterances, tmp_path)
    assert not (tmp_path / "npy").exists()


def test_a_folder_of_unknown_origin_is_refused(model, corpus, tmp_path):
    utterances = [Utterance("a", str(corpus / "speaker0" / "utterance 2.wav"))]
    (tmp_path / "index.jsonl").write_text("")
    with pytest.raises(ExtractionError, match=r"no settings\.json"):
        extract(model, utterances, tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ExtractionError, match="broken"):
        extract(model, utterances, tmp_path)


# Several processes ----------------------------------------------------------------------------------------------------


def test_two_processes_share_the_work_and_one_index(corpus, tmp_path):
    arguments = ("extract", corpus, tmp_path / "out", "--model", "tiny")
    processes = [run_cli(*arguments, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    parts = [lines(tmp_path / "out" / "parts" / f"done.{rank}-of-2.jsonl") for rank in range(2)]
    assert [len(part) for part in parts] == [6, 6]
    index = index_of(tmp_path / "out")
    assert set(index) == {json.loads(line)["id"] for part in parts for line in part}
    assert len(index) == len(lines(tmp_path / "out" / "feats.scp")) == 12


@pytest.mark.filterwarnings("ignore::wavcube_plugins.audio.AudioWarning")
def test_processes_may_run_one_after_the_other_and_their_number_may_change(model, corpus, tmp_path):
    utterances = [*read_manifest(corpus), Utterance("gone", str(corpus / "gone.wav"))]
    result = extract(model, utterances, tmp_path, rank=1, world_size=3)
    assert (result.extracted, result.missing) == (4, 9)
    assert len(index_of(tmp_path)) == 4  # right for what there is
    result = extract(model, utterances, tmp_path, rank=0, world_size=2)
    assert (result.resumed, set(result.failed)) == (2, {"gone"})
    result = extract(model, utterances, tmp_path, rank=1, world_size=2)
    assert result.missing == 0
    assert set(result.failed) == {"gone"}
    assert len(index_of(tmp_path)) == 12
    assert len(lines(tmp_path / "failed.tsv")) == 2


def test_the_index_is_whole_whichever_process_ends_last(model, corpus, tmp_path, monkeypatch):
    """One process replaces the index of another that ended between its reading and its writing."""
    source = str(corpus / "speaker0" / "utterance 2.wav")
    utterances = [Utterance("a", source), Utterance("b", source)]
    replace, others = os.replace, []

    def replace_late(temporary, path):
        if os.fspath(path) == str(tmp_path / "index.jsonl") and not others:
            others.append(None)
            others.append(extract(model, utterances, tmp_path, rank=1, world_size=2))
            assert set(index_of(tmp_path)) == {"a", "b"}
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", replace_late)
    result = extract(model, utterances, tmp_path, rank=0, world_size=2)
    assert (result.extracted, result.missing, others[1].extracted, others[1].missing) == (1, 0, 1, 0)
    assert set(index_of(tmp_path)) == {"a", "b"}
    assert len(lines(tmp_path / "feats.scp")) == len(lines(tmp_path / "feats_shape")) == 2


# Manifests ------------------------------------------------------------------------------------------------------------


def test_folders_give_paths_as_ids(corpus):
    utterances = read_manifest(corpus)
    assert len(utterances) == 12
    assert utterances[0] == Utterance("speaker0/utterance_0", str(corpus / "speaker0" / "utterance 0.wav"))


def test_one_file_is_a_corpus_too(corpus):
    path = corpus / "speaker0" / "utterance 0.wav"
    assert read_manifest(path) == [Utterance("utterance_0", str(path))]


def test_manifests_are_told_apart_by_their_looks(tmp_path, monkeypatch):
    audio = tmp_path / "audio" / "x.wav"
    audio.parent.mkdir()
    audio.touch()
    monkeypatch.chdir(tmp_path / "audio")

    (tmp_path / "list.txt").write_text(f"{audio}\r\n\n./x.wav\naudio/x.wav\nsub folder/y.wav\n")
    listed = read_manifest(tmp_path / "list.txt")
    stem = str(audio).lstrip("/").removesuffix(".wav").replace(" ", "_")
    assert listed == [
        Utterance(stem, str(audio)),
        Utterance("x", str(audio)),  # in the current folder
        Utterance("audio/x", str(audio)),  # in the manifest's folder
        Utterance("sub_folder/y", str(audio.parent / "sub folder" / "y.wav")),  # in neither
    ]
    rooted = read_manifest(tmp_path / "list.txt", root="/corpus")
    assert [utterance.source for utterance in rooted[1:3]] == ["/corpus/x.wav", "/corpus/audio/x.wav"]

    (tmp_path / "wav.scp").write_text("one /a b/x.wav\ntwo\t/y.flac\n")
    assert read_manifest(tmp_path / "wav.scp") == [Utterance("one", "/a b/x.wav"), Utterance("two", "/y.flac")]
    (tmp_path / "other.txt").write_text("one /x.wav\n")
    assert read_manifest(tmp_path / "other.txt", kind="scp") == [Utterance("one", "/x.wav")]

    entries = [
        {"audio_filepath": "/a.wav", "duration": 1.239, "text": "…"},
        {"id": "b 1", "path": "/b.wav"},
        {"utt_id": 7, "wav": "/c.wav", "offset": 1, "duration": 2.5},
        {"audio": "/d.wav", "start": 0.25},
        {"id": "e", "start": 3, "duration": 4, "recording": {"id": "x", "sources": [{"source": "/e.flac"}]}},
    ]
    expected = [
        Utterance("a", "/a.wav"),
        Utterance("b_1", "/b.wav"),
        Utterance("7", "/c.wav", 1.0, 2.5),
        Utterance("d-00000250", "/d.wav", 0.25),
        Utterance("e", "/e.flac", 3.0, 4),
    ]
    text = "\ufeff" + "\n".join(map(json.dumps, entries))
    (tmp_path / "manifest.json").write_text(text)
    assert read_manifest(tmp_path / "manifest.json") == expected
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as file:
        file.write(text)
    assert read_manifest(tmp_path / "cuts.jsonl.gz") == expected


def test_names_that_are_not_utf8_survive(model, corpus, tmp_path):
    folder = tmp_path / "names"
    folder.mkdir()
    source = os.fsencode(folder) + b"/\xff.wav"
    with open(source, "wb") as file:
        file.write((corpus / "speaker0" / "utterance 2.wav").read_bytes())
    extract(model, read_manifest(folder), tmp_path / "out")
    assert (tmp_path / "out" / "feats.scp").read_bytes().startswith(b"\xff /")
    assert extract(model, read_manifest(folder), tmp_path / "out").resumed == 1


def test_the_same_line_twice_is_one_utterance(tmp_path):
    (tmp_path / "wav.scp").write_text("a /x.wav\nb /y.wav\na /x.wav\n")
    assert len(read_manifest(tmp_path / "wav.scp")) == 2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("wav.scp", "a /x.wav\na /y.wav\n", r"id 'a' stands for both /x\.wav and /y\.wav"),
        ("wav.scp", "a /x.wav\nb\n", "line 2: expected an id and a path, found 'b'"),
        ("wav.scp", "a sox x.wav -t wav - |\n", "line 1: a command, which is not run"),
        ("wav.scp", "../a /x.wav\n", r"line 1: '\.\./a' cannot be an id"),
        ("wav.scp", "/a /x.wav\n", "cannot be an id"),
        ("wav.scp", "a" * 300 + " /x.wav\n", "longer than a file name may be"),
        ("list.txt", "", "lists nothing"),
        ("list.txt", "\n \n", "lists nothing"),
        ("list.txt", "..\n", "cannot be an id"),
        ("list.txt", b"\x93NUMPY\x01\x00\xff", "not a text file"),
        ("list.txt", b"\0\0\0", "line 1: not text"),
        ("list.txt.gz", b"not gzip", "not readable as a manifest"),
        ("list.txt.gz", gzip.compress(b"x.wav\n" * 100, mtime=0)[:-9], "not readable as a manifest"),
        ("m.jsonl", '{"path": "/x.wav"}\n{"path": \n', "line 2: not JSON"),
        ("m.jsonl", '{"path": "/x.wav"}\n["/y.wav"]\n', "line 2: expected a JSON object"),
        ("m.jsonl", '{"text": "hello"}\n', "line 1: names no audio; expected one of audio_filepath"),
        ("m.jsonl", '{"path": 7}\n', "path must be text, found 7"),
        ("m.jsonl", '{"path": ""}\n', "cannot be an id"),
        ("m.jsonl", '{"path": "/x.wav", "start": -1}\n', "beginning must be a number of seconds, found -1"),
        ("m.jsonl", '{"path": "/x.wav", "start": 0, "duration": "1"}\n', "duration must be a number"),
        ("m.jsonl", '{"path": "/x.wav", "start": 0, "duration": NaN}\n', "duration must be a number"),
        ("m.jsonl", '{"path": "/x.wav", "start": 0, "duration": 0}\n', "duration is 0"),
    ],
)
def test_bad_manifests_are_one_sentence_that_names_the_line(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManifestError, match=reason) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        read_manifest(tmp_path / "missing.txt")
    with pytest.raises(ManifestError, match="no audio files in this folder"):
        read_manifest(tmp_path)
    for suffix in ("wav", "flac"):
        (tmp_path / f"same.{suffix}").touch()
    with pytest.raises(ManifestError, match=r"'same' stands for both .*same\.flac and .*same\.wav"):
        read_manifest(tmp_path)
