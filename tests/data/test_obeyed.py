"""What a manifest says about an utterance is obeyed, or refused by name: never ignored."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavcube_plugins.data import entries
from wavcube_plugins.data.manifest_writing import write_manifest
from wavcube_plugins.data.manifests import Manifest, list_utterances, read_manifest
from wavcube_plugins.data.utterance import ManifestError, Utterance

RATE = 16000
BOTH = {"type": "file", "channels": [0, 1], "source": "both.wav"}


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal(scale=0.1, size=(3 * RATE, 2)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch, samples):
    """The current folder: two recordings in mono, and both as the channels of one."""
    monkeypatch.chdir(tmp_path)
    for name, content in {"left": samples[:, 0], "right": samples[:, 1], "both": samples}.items():
        soundfile.write(f"{name}.wav", content, RATE, "FLOAT")
    return tmp_path


def cut(**changes):
    """A plain cut as Lhotse writes it, of the second from 0.5 s on in the right channel."""
    recording = {
        "id": "both",
        "sources": [BOTH],
        "sampling_rate": RATE,
        "num_samples": 3 * RATE,
        "duration": 3.0,
        "channel_ids": [0, 1],
    }
    recording |= changes.pop("recording", {})
    return {
        "id": "c", "start": 0.5, "duration": 1.0, "channel": 1, "supervisions": [], "recording": recording,
        "type": "MonoCut", **changes,
    }  # fmt: skip


def supervision(**changes):
    return {"id": "s", "recording_id": "both", "start": 0.0, "duration": 1.0, "channel": 1, "text": "x", **changes}


def read_line(entry):
    Path("m.jsonl").write_text(json.dumps(entry) + "\n")
    [utterance] = read_manifest("m.jsonl")
    assert list(Manifest("m.jsonl")) == [utterance]
    return utterance


# Obeyed ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "begin", "end", "channel"),
    [
        ({"path": "both.wav", "channel": 0}, 0, 3, 0),
        ({"path": "both.wav", "channel": 1}, 0, 3, 1),
        ({"path": "both.wav", "channel": [1]}, 0, 3, 1),
        ({"path": "left.wav", "start": 0.5, "end": 2}, 0.5, 2, 0),
        ({"path": "left.wav", "end": 2}, 0, 2, 0),
        ({"path": "left.wav", "end": 2, "duration": 3.0}, 0, 2, 0),  # a duration alone is the whole file's
        ({"path": "left.wav", "offset": 0.5, "end": 2, "duration": 1.5}, 0.5, 2, 0),
        (cut(), 0.5, 1.5, 1),
        (cut(channel=0), 0.5, 1.5, 0),
        (cut(supervisions=[supervision()]), 0.5, 1.5, 1),
        (cut(recording={"transforms": []}, custom={"snr": 3}), 0.5, 1.5, 1),
        (
            cut(channel=7, recording={"sources": [{"type": "file", "channels": [3, 7], "source": "both.wav"}]}),
            0.5,
            1.5,
            1,
        ),
    ],
)
def test_span_and_channel_are_obeyed(folder, samples, entry, begin, end, channel):
    utterance = read_line(entry)
    expected = samples[round(begin * RATE) : round(end * RATE), channel]
    np.testing.assert_array_equal(utterance.read(RATE), expected)
    assert pickle.loads(pickle.dumps(utterance)) == utterance
    # As it is written anew.
    write_manifest("m.jsonl", "new.jsonl")
    np.testing.assert_array_equal(read_manifest("new.jsonl")[0].read(RATE), expected)


def test_a_recording_of_lhotses_is_the_whole_file(folder, samples):
    utterance = read_line(cut()["recording"])
    assert utterance == Utterance("both", str(folder / "both.wav"))


def test_training_crops_obey_the_channel(folder, samples):
    from wavcube_plugins.pretraining.data import read_crop

    utterance = read_line({"path": "both.wav", "channel": 1, "start": 1, "duration": 1})
    crop = read_crop(utterance, 1.0, RATE, position=0.0, peak_db=-3.0)
    expected = samples[RATE : 2 * RATE, 1]
    np.testing.assert_allclose(crop / crop.abs().max(), expected / np.abs(expected).max(), atol=1e-6)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n \n"])
def test_a_json_array_is_as_good_as_lines(folder, indent, start):
    found = [{"path": "left.wav", "channel": 0}, {"path": "gone.wav"}, {"path": 7}, cut()]
    Path("m.json").write_text(start + json.dumps(found, indent=indent), encoding="utf-8")
    listing = list_utterances("m.json")
    assert [utterance.id for utterance in listing.utterances] == ["left", "gone", "c"]
    assert list(listing.failed) == ["entry 3"]
    assert "m.json, entry 3: the audio's path must be text" in str(listing.failed["entry 3"])
    summary = write_manifest("m.json", "new.jsonl")
    assert (summary.written, summary.total) == (2, 4)
    with pytest.raises(ManifestError, match=r"a JSON array, .*: wavcube manifest m\.json m\.jsonl"):
        Manifest("m.json")


@pytest.mark.parametrize(
    "content", ["[", '[{"path": "left.wav"},]', '[{"path": "left.wav"}]\n[]', "[1, 2]", "[" * 5000]
)
def test_broken_arrays_are_one_sentence(folder, content):
    Path("m.json").write_text(content)
    with pytest.raises(ManifestError, match=r"^m\.json[:,]") as caught:
        read_manifest("m.json")
    assert "\n" not in str(caught.value)


SEGMENTS = "first rec1 0.5 1.5\nsecond rec1 1.5 -1\nthird  rec2 0 2 1\n"


@pytest.fixture
def kaldi(folder):
    Path("data").mkdir()
    Path("data/wav.scp").write_text("rec1 left.wav\nrec2 both.wav\nrec3 gone.wav\nrec4 sox x |\n")
    Path("data/segments").write_text(SEGMENTS)
    return folder


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_segments_beside_a_wav_scp_are_the_utterances(kaldi, samples, end):
    for name in ("wav.scp", "segments"):
        path = Path("data", name)
        path.write_text("\ufeff" + path.read_text().replace("\n", end), newline="", encoding="utf-8")
    found = {utterance.id: utterance.read(RATE) for utterance in read_manifest("data/wav.scp")}
    expected = {"first": samples[8000:24000, 0], "second": samples[24000:, 0], "third": samples[:32000, 1]}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    assert list(Manifest("data/wav.scp")) == read_manifest("data/wav.scp")
    assert write_manifest("data/wav.scp", "new.jsonl").written == 3
    Path("data/segments").unlink()
    assert [utterance.id for utterance in list_utterances("data/wav.scp").utterances] == ["rec1", "rec2", "rec3"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x rec9 0 1", "line 4: the recording 'rec9' is not in data/wav.scp"),
        ("x rec4 0 1", "wav.scp, line 4: a command"),
        ("x rec1 0", "line 4: expected an id, a recording, start and end"),
        ("x rec1 a 1", "line 4: start, end and channel must be numbers"),
        ("x rec1 2 1", "line 4: no part of a recording lies from 2 s to 1 s"),
        ("x rec1 0 nan", "line 4: no part of a recording"),
        ("x rec1 0 1 -1", "line 4: no part of a recording"),
    ],
)
def test_bad_segments_are_named_and_do_not_stop_the_rest(kaldi, line, reason):
    Path("data/segments").write_text(SEGMENTS + line)
    listing = list_utterances("data/wav.scp")
    assert len(listing.utterances) == 3
    [error] = listing.failed.values()
    assert reason in str(error)


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "left.wav\nright.wav"),
        ("wav.scp", "left left.wav\nright right.wav\n"),
        ("m.jsonl", '{"path": "left.wav"}\n{"path": "right.wav"}\n'),
        ("joined.txt", "left.wav\n\ufeffright.wav"),
    ],
)
def test_line_ends_and_byte_order_marks_of_windows(folder, start, end, name, content):
    Path(name).write_text(start + content.replace("\n", end), newline="", encoding="utf-8")
    expected = [Utterance(word, str(folder / f"{word}.wav")) for word in ("left", "right")]
    assert read_manifest(name) == expected
    assert list(Manifest(name)) == expected


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"path": "both.wav", "channel": "left"}, "the channel must be one number counted from 0, found 'left'"),
        ({"path": "both.wav", "channel": [0, 1]}, r"the channel must be one number counted from 0, found \[0, 1\]"),
        ({"path": "both.wav", "channel": -1}, "the channel must be one number"),
        ({"path": "both.wav", "channel": True}, "the channel must be one number"),
        ({"path": "both.wav", "channel_selector": "average"}, "has 'channel_selector', which is not read"),
        ({"path": "left.wav", "transforms": [{"name": "Speed"}]}, "has 'transforms', which is not read"),
        ({"path": "left.wav", "start_time": 1}, "has 'start_time', which is not read"),
        ({"path": "left.wav", "start": 1, "end": 1}, "the duration is 0 seconds"),
        ({"path": "left.wav", "start": 2, "end": 1}, "the duration is -1 seconds"),
        ({"path": "left.wav", "start": 1, "end": 2, "duration": 2}, "lasts 1 s until its end, but its duration is 2 s"),
        ({"path": "left.wav", "start": 1, "offset": 2}, "start is 1 s, but offset is 2 s"),
        ({"path": "left.wav", "end": "2"}, "the end must be a number of seconds, found '2'"),
        (supervision(), "a Lhotse supervision is used with its recording: lhotse cut simple"),
        (cut(channel=3), r"channel 3 is not among the channels \[0, 1\]"),
        (cut(recording={"sources": []}), "its recording names no sources"),
        (cut(recording={"sources": [{"type": "file", "channels": [0]}]}), "path must be text, found None"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(folder, entry, reason):
    with pytest.raises(ManifestError, match=rf"^m\.jsonl, line 1: .*{reason}"):
        read_line(entry)


def test_a_channel_that_the_file_lacks_is_refused(folder):
    from wavcube_plugins.audio import AudioError

    utterance = read_line({"path": "both.wav", "channel": 2})
    with pytest.raises(AudioError, match=r"both\.wav: has 2 channels, counted from 0, and no channel 2"):
        utterance.read(RATE)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".yaml"])
def test_manifests_of_other_kinds_are_refused(folder, suffix):
    path = Path(f"m{suffix}")
    path.write_text("left.wav\n")
    with pytest.raises(ManifestError, match=rf"m\{suffix}: \{suffix} manifests are not read"):
        read_manifest(path)
    assert len(read_manifest(path, kind="list")) == 1


# Lhotse's own ---------------------------------------------------------------------------------------------------------

TWO_SOURCES = [
    {"type": "file", "channels": [0], "source": "left.wav"},
    {"type": "file", "channels": [1], "source": "right.wav"},
]
SPEED = {"name": "Speed", "kwargs": {"factor": 2.0}}
BEYOND = {
    "several sources": (cut(recording={"sources": TWO_SOURCES}), "a recording of 2 sources"),
    "transforms": (
        cut(recording={"transforms": [SPEED], "num_samples": 24000, "duration": 1.5}, start=0.25, duration=1.0),
        r"a recording with transforms \(Speed\)",
    ),
    "two channels": (cut(channel=[0, 1], type="MultiCut"), "a MultiCut"),
    "a mixture": (
        {
            "id": "c",
            "type": "MixedCut",
            "tracks": [
                {"type": "MonoCut", "offset": 0.0, "cut": cut()},
                {"type": "MonoCut", "offset": 0.25, "cut": cut(id="d", channel=0), "snr": 10.0},
            ],
        },
        "a MixedCut",
    ),
    "two supervisions": (
        cut(supervisions=[supervision(duration=0.5), supervision(id="t", start=0.5, duration=0.5)]),
        "a cut of 2 supervisions",
    ),
    "half a supervision": (cut(supervisions=[supervision(duration=0.5)]), "a cut with a supervision of a part of it"),
    "another channel": (cut(supervisions=[supervision(channel=0)]), "a supervision of channel 0"),
}


@pytest.mark.parametrize("case", BEYOND)
def test_without_lhotse_its_own_are_refused_by_name(folder, monkeypatch, case):
    monkeypatch.setattr(entries, "has_lhotse", lambda: False)
    entry, reason = BEYOND[case]
    with pytest.raises(ManifestError, match=rf"^m\.jsonl, line 1: {reason}.* pip install '\.\[lhotse\]'"):
        read_line(entry)
    Path("m.jsonl").write_text(f'{json.dumps(entry)}\n{{"path": "left.wav"}}\n')
    listing = list_utterances("m.jsonl")
    assert [utterance.id for utterance in listing.utterances] == ["left"] and len(listing.failed) == 1


@pytest.mark.parametrize("kind", ["command", "url"])
def test_commands_are_not_run_and_nothing_is_downloaded(folder, kind):
    source = {"type": kind, "channels": [0, 1], "source": "touch here; cat both.wav"}
    with pytest.raises(ManifestError, match=f"a source of the type '{kind}'"):
        read_line(cut(recording={"sources": [source]}))
    with pytest.raises(ManifestError, match=f"a source of the type '{kind}'"):
        read_line({"id": "c", "type": "MixedCut", "tracks": [{"cut": cut(recording={"sources": [source]})}]})
    assert not Path("here").exists()


needs_lhotse = pytest.mark.skipif(importlib.util.find_spec("lhotse") is None, reason="Lhotse is an extra")


@needs_lhotse
@pytest.mark.filterwarnings("ignore::wavcube_plugins.audio.AudioWarning")
@pytest.mark.parametrize("case", [name for name in BEYOND if name != "another channel"])
def test_lhotse_reads_its_own(folder, case):
    from lhotse.serialization import deserialize_item

    entry = BEYOND[case][0]
    utterance = read_line(entry)
    expected = deserialize_item(json.loads(json.dumps(entry))).load_audio().mean(axis=0)
    np.testing.assert_allclose(utterance.read(RATE), expected, atol=1e-6)
    assert utterance.info().num_frames == len(expected)
    part = utterance.read_samples(RATE, 1600, 3200)
    assert part.shape == (3200,)
    np.testing.assert_allclose(part, expected[1600:4800], atol=1e-6)
    again = pickle.loads(pickle.dumps(utterance))
    assert again == utterance
    np.testing.assert_array_equal(again.read(RATE), utterance.read(RATE))
    write_manifest("m.jsonl", "new.jsonl")
    np.testing.assert_allclose(read_manifest("new.jsonl")[0].read(RATE), expected, atol=1e-6)


@needs_lhotse
@pytest.mark.parametrize("entry", [cut(), cut(channel=0), cut(start=0, duration=3.0)])
def test_we_read_plain_cuts_as_lhotse_does(folder, entry):
    from lhotse.serialization import deserialize_item

    expected = deserialize_item(json.loads(json.dumps(entry))).load_audio()[0]
    np.testing.assert_array_equal(read_line(entry).read(RATE), expected)


@needs_lhotse
def test_paths_of_lhotses_own_are_below_the_root(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "m.jsonl"
    path.write_text(json.dumps(BEYOND["several sources"][0]) + "\n")
    [utterance] = read_manifest(path, root=folder)
    assert utterance.files == (str(folder / "left.wav"), str(folder / "right.wav"))


@needs_lhotse
def test_what_lhotse_cannot_read_is_one_sentence(folder):
    Path("m.jsonl").write_text(json.dumps({"id": "x", "type": "MixedCut", "tracks": [{"cut": 7}]}) + "\n")
    with pytest.raises(ManifestError, match=r"m\.jsonl, line 1: Lhotse does not read it"):
        read_manifest("m.jsonl")
    Path("right.wav").unlink()
    utterance = read_line(BEYOND["several sources"][0])
    from wavcube_plugins.audio import AudioError

    with pytest.raises(AudioError, match="not readable by Lhotse"):
        utterance.read(RATE)
