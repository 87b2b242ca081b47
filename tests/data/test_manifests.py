"""Manifests for training: read line by line, in every format, and written from folders and other manifests."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavcube_plugins.data import manifest_writing, manifests
from wavcube_plugins.data.manifest_writing import write_manifest
from wavcube_plugins.data.manifests import Manifest, read_manifest
from wavcube_plugins.data.utterance import ManifestError, Utterance

CUT = {
    "id": "small/100/sea_fairies_0812_librivox_64kb_mp3/01_baum_sea_fairies_64kb_0",
    "start": 1.5,
    "duration": 0.75,
    "channel": 0,
    "supervisions": [{"text": "the oceans are big and broad"}],
    "recording": {
        "id": "small/100/sea_fairies_0812_librivox_64kb_mp3/01_baum_sea_fairies_64kb",
        "sources": [{"type": "file", "channels": [0], "source": "small/100/01_baum_sea_fairies_64kb.flac"}],
        "sampling_rate": 16000,
        "duration": 3.0,
    },
    "type": "MonoCut",
}  # one of LibriHeavy's lines, with shorter times


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: three recordings, and another one below."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(scale=0.1, size=48000)
    for name, samples, rate in (("a.wav", 16000, 16000), ("b.flac", 11025, 22050), ("c d.wav", 8000, 8000)):
        soundfile.write(name, noise[:samples], rate)
    Path("small/100").mkdir(parents=True)
    soundfile.write("small/100/01_baum_sea_fairies_64kb.flac", noise, 16000)
    return tmp_path


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# Reading line by line -------------------------------------------------------------------------------------------------

SOURCES = {
    "list.txt": "a.wav\n\nb.flac\r\n  \nsmall/100/01_baum_sea_fairies_64kb.flac",
    "wav.scp": "first a.wav\nsecond\tc d.wav\n",
    "nemo.jsonl": '{"audio_filepath": "a.wav", "duration": 1.0, "text": "x"}\n'
    '{"path": "b.flac", "id": "x y", "offset": 0.2}\n',
    "cuts.jsonl": json.dumps(CUT) + "\n\n" + json.dumps({**CUT, "id": "2", "start": 0}) + "\n",
    "marked.jsonl": "\ufeff" + json.dumps(CUT) + "\r\n",
}


@pytest.mark.parametrize("name", SOURCES)
def test_line_by_line_gives_what_reading_at_once_gives(folder, name):
    Path(name).write_text(SOURCES[name], encoding="utf-8", newline="")
    manifest = Manifest(name)
    expected = read_manifest(name)
    assert len(manifest) == len(expected) and list(manifest) == expected
    assert all(Path(utterance.source).is_file() for utterance in manifest)
    assert [manifest[index] for index in reversed(range(len(manifest)))] == expected[::-1]


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_lines_may_lie_across_blocks(folder, monkeypatch, block, end):
    monkeypatch.setattr(manifests, "_BLOCK", block)
    Path("list.txt").write_text("\n\na.wav\n\t\nb.flac\n\n\nc d.wav" + end)
    assert [utterance.id for utterance in Manifest("list.txt")] == ["a", "b", "c_d"]


def test_libriheavy_cuts_below_a_root(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "cuts.jsonl").write_text(json.dumps(CUT) + "\n")
    [cut] = Manifest(elsewhere / "cuts.jsonl", root=folder)
    assert cut == Utterance(CUT["id"], str(folder / "small/100/01_baum_sea_fairies_64kb.flac"), 1.5, 0.75)
    assert cut.read(16000).shape == (12000,)
    whole = soundfile.read(cut.source, dtype="float32")[0]
    np.testing.assert_array_equal(cut.read(16000), whole[24000:36000])


def test_several_sources_follow_each_other(folder):
    Path("list.txt").write_text("a.wav\nb.flac\n")
    manifest = Manifest("list.txt", "small", "a.wav", "list.txt")
    assert [utterance.id for utterance in manifest] == ["a", "b", "100/01_baum_sea_fairies_64kb", "a", "a", "b"]
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"utterance {index} of 6"):
            manifest[index]


def test_a_line_that_cannot_be_used_shows_when_it_is_asked_for(folder):
    Path("list.jsonl").write_text('{"path": "a.wav"}\n\n{"path": \n{"text": "no audio"}\n')
    manifest = Manifest("list.jsonl")
    assert len(manifest) == 3 and manifest[0].id == "a"
    with pytest.raises(ManifestError, match=r"list\.jsonl, entry 2: not JSON"):
        manifest[1]
    with pytest.raises(ManifestError, match=r"list\.jsonl, entry 3: names no audio"):
        manifest[2]


def test_an_awkward_name_costs_its_own_file_alone(folder):
    for name in ("a.flac", "c_d.wav", f"{'x' * 230}.wav"):
        Path(name).write_bytes(Path("a.wav").read_bytes())
    # Ids are not compared for training, where nothing is called by them.
    manifest = Manifest(".")
    assert len(manifest) == 7
    assert sorted(Path(manifest[index].source).name for index in range(5)) == [
        "a.flac", "a.wav", "b.flac", "c d.wav", "c_d.wav",
    ]  # fmt: skip
    with pytest.raises(ManifestError, match=r"xxx\.wav: the id xxx.* is longer than a file name may be"):
        manifest[6]
    # Latents are.
    with pytest.raises(ManifestError, match="is longer than a file name may be"):
        read_manifest(".")
    summary = write_manifest(".", "new.jsonl")
    assert [Path(line["path"]).name for line in lines("new.jsonl")] == [
        "a.flac", "b.flac", "c d.wav", "01_baum_sea_fairies_64kb.flac",
    ]  # fmt: skip
    assert summary.failed.keys() == {"a", "c_d", "entry 7"}
    assert "a.wav: the id 'a' stands for something else already" in summary.failed["a"]


def test_null_is_as_good_as_nothing(folder):
    entry = {"audio_filepath": None, "path": "a.wav", "id": None, "utt": "x", "start": None, "offset": 0.5}
    Path("list.jsonl").write_text(json.dumps(entry) + "\n" + '{"path": "b.flac", "id": null, "start": null}\n')
    source = {name: str(folder / name) for name in ("a.wav", "b.flac")}
    assert read_manifest("list.jsonl") == [Utterance("x", source["a.wav"], 0.5), Utterance("b", source["b.flac"])]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.jsonl", "not readable as a manifest, no such file or directory"),
        ("empty.txt", "this manifest lists nothing"),
        ("blank.txt", "this manifest lists nothing"),
        ("cuts.jsonl.gz", r"a compressed file does not allow; unpack it first: gunzip --keep cuts\.jsonl\.gz"),
        ("binary.txt", "not a text file"),
        ("void", "no audio files in this folder"),
    ],
)
def test_sources_of_no_use(folder, name, problem):
    Path("empty.txt").touch()
    Path("blank.txt").write_text("\n \n\r\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00\n" * 3)
    Path("cuts.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    Path("void").mkdir()
    with pytest.raises(ManifestError, match=problem):
        Manifest(name)
    with pytest.raises(ManifestError, match="no manifest was given"):
        Manifest()


def test_a_million_lines_cost_eight_bytes_each(folder):
    Path("list.txt").write_text("a.wav\n" * 1_000_000)
    manifest = Manifest("list.txt")
    assert len(manifest) == 1_000_000 and manifest[999_999].id == "a"
    assert manifest._parts[0]._offsets.nbytes == 8_000_000


# Writing --------------------------------------------------------------------------------------------------------------


def test_a_folder_is_written(folder):
    summary = write_manifest(".", "new/list.jsonl")
    assert (summary.written, summary.failed, summary.total) == (4, {}, 4)
    assert summary.seconds == pytest.approx(1.0 + 0.5 + 1.0 + 3.0)
    found = lines("new/list.jsonl")
    assert found[1] == {"id": "b", "path": str(folder / "b.flac"), "duration": 0.5, "sample_rate": 22050}
    assert [line["id"] for line in found] == ["a", "b", "c_d", "small/100/01_baum_sea_fairies_64kb"]
    # Both ways of reading take it, as the folder itself.
    assert list(Manifest("new/list.jsonl")) == read_manifest("new/list.jsonl") == read_manifest(".")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_kind_of_manifest_is_written_anew(folder, name, packed):
    Path(name).write_text(SOURCES[name], encoding="utf-8", newline="")
    source = name
    if packed:
        source = f"{name}.gz"
        Path(source).write_bytes(gzip.compress(Path(name).read_bytes()))
    summary = write_manifest(source, "new.jsonl")
    assert not summary.failed and summary.written == len(read_manifest(name))
    again = list(Manifest("new.jsonl"))
    for utterance, expected in zip(again, read_manifest(name), strict=True):
        assert (utterance.id, utterance.source, utterance.start) == (expected.id, expected.source, expected.start)
        np.testing.assert_array_equal(utterance.read(16000), expected.read(16000))


def test_parts_of_files_keep_their_place(folder):
    cuts = [CUT, {**CUT, "id": "rest", "duration": None}, {**CUT, "id": "beyond", "start": 2.5, "duration": 4}]
    Path("cuts.jsonl").write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
    write_manifest("cuts.jsonl", "new.jsonl")
    places = [(line["start"], line["duration"], line["sample_rate"]) for line in lines("new.jsonl")]
    assert places == [(1.5, 0.75, 16000), (1.5, 1.5, 16000), (2.5, 0.5, 16000)]


def test_relative_paths_let_both_be_moved(folder):
    write_manifest(".", "list.jsonl", relative=True)
    write_manifest("small", "elsewhere/list.jsonl", root=folder / "small", relative=True)
    assert [line["path"] for line in lines("list.jsonl")][::2] == ["a.wav", "c d.wav"]
    assert lines("elsewhere/list.jsonl")[0]["path"] == "100/01_baum_sea_fairies_64kb.flac"
    assert Manifest("elsewhere/list.jsonl", root="small")[0].read(16000).shape == (48000,)
    moved = folder / "moved"
    moved.mkdir()
    for name in ("list.jsonl", "a.wav", "b.flac", "c d.wav", "small"):
        os.rename(name, moved / name)
    os.chdir("/")
    assert all(Path(utterance.source).is_file() for utterance in Manifest(moved / "list.jsonl"))


def test_what_cannot_be_used_is_left_out_and_named(folder):
    Path("text.wav").write_text("not audio")
    soundfile.write("none.wav", np.zeros(0), 16000)
    entries = [
        {"path": "a.wav"},
        {"path": "gone.wav"},
        {"path": "text.wav"},
        {"path": "none.wav"},
        {"path": "b.flac", "start": 0.5, "id": "late"},
        {"path": "b.flac", "duration": 7, "start": "x"},
        {"path": "a.wav"},
        {"path": "b.flac", "id": "a"},
        {"path": "gone.wav"},
        {"path": "b.flac"},
    ]
    Path("list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "{\n")
    summary = write_manifest("list.jsonl", "new.jsonl", jobs=2)
    assert [line["id"] for line in lines("new.jsonl")] == ["a", "b"]  # what comes twice is taken once
    assert (summary.written, summary.total) == (2, 10)
    problems = {
        "gone": "no such file",
        "text": "not readable as audio",
        "none": "has no samples",
        "late": "ends before 0.5 s, where this part begins",
        "entry 6": "line 6: the beginning must be a number of seconds",
        "a": "the id 'a' stands for something else already",
        "gone (entry 9)": "no such file",
        "entry 11": "line 11: not JSON",
    }
    assert summary.failed.keys() == problems.keys()
    assert all(problem in summary.failed[name] for name, problem in problems.items())


def test_order_is_kept_with_any_number_of_threads(folder, monkeypatch):
    monkeypatch.setattr(manifest_writing, "_PORTION", 3)
    names = [f"{number:03d} {('a.wav', 'b.flac')[number % 2]}" for number in range(100)]
    Path("wav.scp").write_text("\n".join(names))
    seen = []

    def watch(entries, total):
        assert total == 100
        for entry in entries:
            seen.append(entry)
            yield entry

    for jobs in (1, 5):
        write_manifest("wav.scp", f"{jobs}.jsonl", jobs=jobs, watch=watch)
        assert [line["id"] for line in lines(f"{jobs}.jsonl")] == [f"{number:03d}" for number in range(100)]
    assert len(seen) == 200


@pytest.mark.parametrize(
    ("source", "destination", "problem"),
    [
        ("missing", "new/new.jsonl", "missing: no such file or folder"),
        ("a.wav", "new.json", r"new\.json: a manifest is written as \.jsonl"),
        ("empty.jsonl", "new.jsonl", r"empty\.jsonl: this manifest lists nothing"),
        ("empty.jsonl", "./empty.jsonl", r"empty\.jsonl: is the source and would be overwritten"),
        ("bad.txt", "new.jsonl", r"bad\.txt: none of 2 entries can be used; the first because: .*x\.wav: no such file"),
        ("cut.jsonl.gz", "new.jsonl", r"cut\.jsonl\.gz: not readable as a manifest, "),
        ("text.jsonl.gz", "new.jsonl", r"text\.jsonl\.gz: not readable as a manifest, "),
    ],
)
def test_nothing_is_written_of_nothing(folder, source, destination, problem):
    Path("empty.jsonl").touch()
    Path("bad.txt").write_text("x.wav\ny.wav\n")
    packed = gzip.compress(b"".join(json.dumps({**CUT, "id": str(n)}).encode() + b"\n" for n in range(500)))
    Path("cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    Path("text.jsonl.gz").write_text("not compressed")
    before = set(folder.rglob("*"))
    with pytest.raises(ManifestError, match=problem):
        write_manifest(source, destination)
    assert set(folder.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix", reason="names of files are text elsewhere")
def test_names_that_are_not_utf8(folder):
    Path("odd").mkdir()
    os.rename("a.wav", os.fsdecode(b"odd/\xff\xe9.wav"))
    Path("b.flac").rename("odd/größe.flac")
    write_manifest("odd", "new.jsonl")
    assert "größe" in Path("new.jsonl").read_text(encoding="utf-8")
    assert sorted(len(utterance.read(16000)) for utterance in Manifest("new.jsonl")) == [8000, 16000]
