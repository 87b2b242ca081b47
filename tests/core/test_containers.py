"""What is read is the whole recording or the file is refused, in every container that libsndfile reads."""

import contextlib
import math
import struct
import warnings

import numpy as np
import pytest
import soundfile
import torch

from wavcube_plugins import audio, containers
from wavcube_plugins.audio import AudioError

COUNT = 40_000
WAVE = (0.4 * np.sin(np.arange(COUNT) * 0.05) + 0.05 * np.cos(np.arange(COUNT) * 0.7)).astype(np.float32)
# Containers that state no length: all that is there is the recording.
WITHOUT_LENGTH = ("PVF", "IRCAM", "PAF", "XI")
RATES = {"WVE": 8000, "GSM610": 8000, "G721_32": 8000, "G723_24": 8000, "NMS_ADPCM_16": 8000}


def encodings():
    for container in soundfile.available_formats():
        for encoding in soundfile.available_subtypes(container):
            if container not in ("RAW", "SD2") and soundfile.check_format(container, encoding):
                yield container, encoding


ENCODINGS = list(encodings())


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """One recording in every container and encoding that libsndfile writes here, by container and encoding."""
    folder, made = tmp_path_factory.mktemp("recordings"), {}
    for container, encoding in ENCODINGS:
        path = folder / f"{container}.{encoding}"
        rate = RATES.get(container, RATES.get(encoding, 16000))
        try:
            soundfile.write(path, WAVE, rate, encoding, format=container)
        except soundfile.LibsndfileError:
            continue
        made[container, encoding] = path
    return made


def read(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return audio.read_audio(path, audio.read_info(path).sample_rate, **options)


def refused(path, reason=".", info=True):
    for function in (audio.read_info, audio.read_audio) if info else (audio.read_audio,):
        with pytest.raises(AudioError, match=reason) as caught:
            function(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.fixture
def changed(tmp_path):
    """Writes another content under the name of a recording."""

    def change(path, content):
        target = tmp_path / path.name
        target.write_bytes(content)
        return target

    return change


def test_every_container_and_encoding_is_read_whole(recordings):
    assert len(recordings) > 60
    for (container, encoding), path in recordings.items():
        waveform = read(path)
        # Blocks of ADPCM and GSM are filled up; nothing is lost.
        assert COUNT <= len(waveform) < COUNT + 1100, path.name
        assert audio.read_info(path).num_frames == len(waveform), path.name
        if container != "MP3" and "DWVW" not in encoding and container != "SVX":
            assert np.abs(waveform[:COUNT].numpy() - WAVE).mean() < 0.1, path.name


def test_every_container_and_encoding_is_read_in_parts(recordings):
    for (container, _), path in recordings.items():
        whole = read(path)
        for start, count in ((0, 10), (1000, 500), (33_333, None), (len(whole) - 1, 5)):
            if container in ("PAF", "SDS") and start > COUNT - 10:
                continue  # libsndfile does not give their last sample alone
            part = read(path, start=start, num_frames=count)
            expected = whole[start:][:count]
            assert part.shape == expected.shape, (path.name, start)
            assert (part - expected).abs().max() < 1e-4, (path.name, start)
        with pytest.raises(AudioError, match=f"ends at sample {len(whole)}, before the wanted start"):
            read(path, start=len(whole))


@pytest.mark.parametrize("share", [0.3, 0.75, 0.999])
def test_a_file_that_was_cut_short_is_refused(recordings, changed, share):
    for (container, _), path in recordings.items():
        content = path.read_bytes()
        part = changed(path, content[: int(len(content) * share)])
        if container in WITHOUT_LENGTH:
            with contextlib.suppress(AudioError):
                assert len(read(part)) <= COUNT
            continue
        refused(part)
        with pytest.raises(AudioError):
            audio.read_audio(part, start=100, num_frames=100)  # of which there would be enough


def test_a_file_that_holds_more_than_it_says_is_refused(recordings, changed):
    for (container, _), path in recordings.items():
        more = changed(path, path.read_bytes() + np.random.default_rng(0).bytes(20_000))
        if container in WITHOUT_LENGTH:
            with contextlib.suppress(AudioError):  # random bytes may be no numbers
                assert len(read(more)) > COUNT
        elif container != "MAT4":  # what follows may be another matrix
            refused(more)


def test_recordings_one_after_the_other_are_refused(recordings, changed):
    for (container, _), path in recordings.items():
        if container not in (*WITHOUT_LENGTH, "MAT4"):
            # Of compressed files only reading the whole tells.
            refused(changed(path, 2 * path.read_bytes()), info=container not in ("FLAC", "OGG", "MP3"))


def test_a_shorter_recording_behind_another_is_refused(tmp_path):
    for container, encoding in (("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")):
        parts = []
        for count in (COUNT, 9000):
            soundfile.write(tmp_path / "part", WAVE[:count], 16000, encoding, format=container)
            parts.append((tmp_path / "part").read_bytes())
        (tmp_path / f"joined.{container.lower()}").write_bytes(b"".join(parts))
        refused(tmp_path / f"joined.{container.lower()}")


# Lengths in headers ---------------------------------------------------------------------------------------------------


def wav(data, size, *, riff=None, magic=b"RIFF", before=b"", after=b"", form=(1, 1, 16000, 32000, 2, 16)):
    order = ">" if magic == b"RIFX" else "<"
    body = b"WAVEfmt " + struct.pack(f"{order}IHHIIHH", 16, *form) + before
    body += b"data" + struct.pack(f"{order}I", size) + data + after
    return magic + struct.pack(f"{order}I", len(body) if riff is None else riff) + body


SAMPLES = (WAVE * 32767).astype("<i2").tobytes()
LIST = b"LIST" + struct.pack("<I", 12) + b"INFOISFT" + struct.pack("<I", 0)
UNKNOWN = (0xFFFFFFFF, 0xFFFFFF00, 0x7FFFFFFF, 0x7FFFF000, 0x80000000)


@pytest.mark.parametrize("size", UNKNOWN, ids=hex)
def test_a_length_marked_as_unknown_means_all_that_is_there(tmp_path, size):
    for riff in (None, 0, 0xFFFFFFFF, size):
        (tmp_path / "pipe.wav").write_bytes(wav(SAMPLES, size, riff=riff))
        assert len(read(tmp_path / "pipe.wav")) == audio.read_info(tmp_path / "pipe.wav").num_frames == COUNT
    (tmp_path / "pipe.au").write_bytes(
        b".snd" + struct.pack(">IIIII", 24, size, 3, 16000, 1) + np.frombuffer(SAMPLES, "<i2").astype(">i2").tobytes()
    )
    if size == 0xFFFFFFFF:  # AU has one such mark
        assert len(read(tmp_path / "pipe.au")) == COUNT


WHOLE = {
    "plain": {},
    "notes behind": {"after": LIST},
    "notes before": {"before": LIST},
    "notes cut off": {"after": LIST[:14]},
    "zeros behind": {"after": bytes(1000)},
    "one byte behind": {"after": b"\0"},
    "an old tag behind": {"after": b"TAG" + bytes(125)},
    "a tag behind": {"after": b"ID3\x03\0\0\0\0\0\x10" + bytes(16)},
    "an unknown chunk": {"after": b"xyz1" + struct.pack("<I", 6) + b"abcdef"},
    "a wrong length of the file": {"riff": 100},
    "a length of the file for a pipe": {"riff": 0xFFFFFFFF},
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_may_stand_around_the_samples(tmp_path, name):
    (tmp_path / "a.wav").write_bytes(wav(SAMPLES, len(SAMPLES), **WHOLE[name]))
    assert torch.equal(read(tmp_path / "a.wav"), torch.from_numpy(np.frombuffer(SAMPLES, "<i2") / np.float32(32768)))


def test_wrong_lengths_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    for size, reason in (
        (len(SAMPLES) + 2, "promises 2 bytes more"),
        (2 * len(SAMPLES), "promises 80,000 bytes more"),
        (0x6FFFFFFF, "cut short or still being copied"),
        (len(SAMPLES) - 2000, "more than its header says"),
        (2, "more than its header says"),
    ):
        path.write_bytes(wav(SAMPLES, size))
        refused(path, reason)
    for content in (
        wav(SAMPLES, len(SAMPLES), after=b"data" + struct.pack("<I", 100) + bytes(100)),
        wav(SAMPLES, len(SAMPLES), after=bytes(70_000)),
        wav(SAMPLES, len(SAMPLES), after=wav(SAMPLES, len(SAMPLES))),
    ):
        path.write_bytes(content)
        refused(path)


def test_byte_orders_and_wide_headers(tmp_path):
    swapped = np.frombuffer(SAMPLES, "<i2").astype(">i2").tobytes()
    (tmp_path / "a.wav").write_bytes(wav(swapped, len(swapped), magic=b"RIFX"))
    assert len(read(tmp_path / "a.wav")) == COUNT
    (tmp_path / "a.wav").write_bytes(wav(swapped[:-2], len(swapped), magic=b"RIFX"))
    refused(tmp_path / "a.wav", "promises 2 bytes more")
    for subtype in ("PCM_24", "DOUBLE", "ALAW", "ULAW", "FLOAT", "PCM_U8", "PCM_32"):
        for container in ("WAV", "WAVEX", "RF64"):
            soundfile.write(tmp_path / "b.wav", WAVE, 48000, subtype, format=container)
            assert (read(tmp_path / "b.wav") - torch.from_numpy(WAVE)).abs().max() < 0.02
    soundfile.write(tmp_path / "c.wav", np.stack([WAVE] * 8, 1), 48000, format="WAVEX")
    assert audio.read_info(tmp_path / "c.wav") == audio.AudioInfo(48000, COUNT, 8)
    assert len(audio.read_audio(tmp_path / "c.wav", channel=7)) == math.ceil(COUNT / 3)


def test_a_flac_header_that_promises_too_little(tmp_path):
    audio.write_audio(tmp_path / "a.flac", torch.from_numpy(WAVE))
    content = bytearray((tmp_path / "a.flac").read_bytes())
    fields = int.from_bytes(content[21:26], "big")
    assert fields & (1 << 36) - 1 == COUNT
    for count in (COUNT - 1, COUNT - 8000, 4096, 1):
        content[21:26] = (fields >> 36 << 36 | count).to_bytes(5, "big")
        (tmp_path / "a.flac").write_bytes(content)
        refused(tmp_path / "a.flac", f"promises {count:,} samples and ends after {COUNT:,}")


def test_flac_of_any_block_size_and_with_tags(tmp_path, recordings):
    for count in (1, 15, 16, 4095, 4096, 4097, 30_001):
        for channels in (1, 2):
            soundfile.write(tmp_path / "a.flac", np.stack([WAVE[:count]] * channels, 1), 16000)
            assert len(audio.read_audio(tmp_path / "a.flac", channel=0)) == count
    content = recordings["FLAC", "PCM_16"].read_bytes()
    tag = b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)
    for changed in (tag + content, content + b"TAG" + bytes(125), content + bytes(4096)):
        (tmp_path / "b.flac").write_bytes(changed)
        assert len(read(tmp_path / "b.flac")) == COUNT


# MP3 ------------------------------------------------------------------------------------------------------------------


def mp3(path, waveform, mode="VARIABLE", rate=16000):
    soundfile.write(path, waveform, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return path.read_bytes()


def without_table(content):
    return content[containers._mp3_frame(content[:4]).size :]


def noise_and_silence():
    noise = 0.5 - np.random.default_rng(0).random(COUNT)
    return np.concatenate([noise, np.zeros(3 * COUNT)])


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_mp3_with_and_without_a_table_of_its_length(tmp_path, mode, rate):
    path = tmp_path / "a.mp3"
    tag = b"ID3\x03\0\0\0\x02\x00\x00" + bytes(32768)
    quiet_first = noise_and_silence()[::-1]
    content = mp3(path, quiet_first, mode, rate)
    for changed in (content, tag + content, content + b"TAG" + bytes(125), tag + content + bytes(500)):
        path.write_bytes(changed)
        assert len(read(path)) == audio.read_info(path).num_frames == len(quiet_first)
    # Without the table nothing says how many samples the encoder added.
    for changed in (without_table(content), tag + without_table(content) + b"TAG" + bytes(125)):
        path.write_bytes(changed)
        assert 0 <= len(read(path)) - len(quiet_first) < 3000
        assert abs(len(read(path)) - audio.read_info(path).num_frames) <= 1152


def test_mp3_inside_a_riff_file(tmp_path):
    content = mp3(tmp_path / "a.mp3", WAVE)
    form = struct.pack("<IHHIIHHHHIHHH", 30, 0x55, 1, 16000, 8000, 1, 0, 12, 1, 2, 288, 1, 0)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", len(content)) + content
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert len(read(tmp_path / "a.wav")) == COUNT
    (tmp_path / "a.wav").write_bytes((b"RIFF" + struct.pack("<I", len(body)) + body)[:-1000])
    refused(tmp_path / "a.wav", "cut short")


def test_mp3_whose_first_frame_misleads_is_refused(tmp_path):
    content = mp3(tmp_path / "a.mp3", noise_and_silence())
    assert len(read(tmp_path / "a.mp3")) == 4 * COUNT
    (tmp_path / "a.mp3").write_bytes(without_table(content))
    refused(tmp_path / "a.mp3", "its first frame misleads")


def test_mp3_that_was_cut_or_joined_is_refused(tmp_path):
    path = tmp_path / "a.mp3"
    content = mp3(path, WAVE)
    half = len(content) // 2
    while containers._mp3_frame(content[half : half + 4]) is None:
        half += 1  # at the border of a frame, where only the table tells
    for changed in (content[:half], content[: half + 100], content[:half] + np.random.default_rng(0).bytes(3000)):
        path.write_bytes(changed)
        refused(path, r"cut short|more than its header says")
    path.write_bytes(content[: half + 50] + content[half + 150 :])
    refused(path, info=False)  # damage in the middle shows when everything is read
    path.write_bytes(without_table(content) + mp3(path, WAVE, rate=24000))
    refused(path, "several recordings")


# Other --------------------------------------------------------------------------------------------------------------


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "growing.wav"
    path.write_bytes(wav(SAMPLES, 0xFFFFFFFF))
    original = soundfile.SoundFile.read

    def read_while_growing(self, *arguments, **options):
        with open(path, "ab") as file:
            file.write(bytes(1000))
        return original(self, *arguments, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", read_while_growing)
    with pytest.raises(AudioError, match="changed while it was read; it may still be being copied"):
        audio.read_audio(path)


def test_a_file_that_was_completed_is_read(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(SAMPLES, len(SAMPLES))[:-500])
    refused(path)
    path.write_bytes(wav(SAMPLES, len(SAMPLES)))
    assert len(read(path)) == COUNT


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "W64", "AU", "RF64", "VOC", "NIST"])
def test_damaged_bytes_give_the_truth_or_one_sentence(tmp_path, recordings, container):
    """Bytes of the header at random; a wrong rate or a wrong sample no reader can know."""
    path = next(path for key, path in recordings.items() if key[0] == container)
    content, generator = path.read_bytes(), np.random.default_rng(1)
    for _ in range(60):
        changed = bytearray(content)
        for place in generator.integers(0, 120, 2):
            changed[place] = generator.integers(256)
        (tmp_path / "a").write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                info = audio.read_info(tmp_path / "a")
                waveform = audio.read_audio(tmp_path / "a", info.sample_rate)
        except AudioError as error:
            assert "\n" not in str(error)
        else:
            assert abs(len(waveform) - info.num_frames) <= (1152 if container == "MP3" else 0)


def test_flac_samples_that_look_like_the_header_of_a_frame(tmp_path):
    """Noise is stored as it is, and these samples are the bytes of a header with a reserved block size."""
    samples = np.random.default_rng(0).integers(-32768, 32768, 3000, dtype=np.int16)
    samples[2500:2503] = (-8, 0x0041, 0x0102)  # ff f8 00 41 01 02
    path = tmp_path / "noise.flac"
    soundfile.write(path, samples, 16000)
    assert bytes.fromhex("fff800410102") in path.read_bytes()
    assert audio.read_info(path).num_frames == 3000
    assert np.array_equal((audio.read_audio(path) * 32768).numpy().astype(np.int16), samples)
