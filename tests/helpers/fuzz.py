"""Random audio files, manifests and damage for the fuzz tests, and the guard that every case runs under."""

import contextlib
import io
import json
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from hypothesis import strategies as st

# A case that takes longer hangs: they take milliseconds, and a second on a busy machine.
SECONDS = 60
# Memory that a case may take on top of what the process has: files of a few kilobytes need next to none.
BYTES = 1 << 30


class Hang(BaseException):
    """A case did not end in time. Not an Exception, so that nothing in between handles it."""


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Run a case with a limit on its time and its memory; exceeding the latter is a MemoryError."""

    def stop(*_):
        raise Hang(f"no end after {SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + BYTES
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def check_message(error: Exception, path: str | os.PathLike) -> None:
    """Check that an error is one sentence that names the file."""
    text = str(error)
    assert "\n" not in text and os.fspath(path) in text, text


# Audio ----------------------------------------------------------------------------------------------------------------

PCM_RATES = (8000, 11025, 16000, 22050, 44100, 48000)
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
MP3_RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000)

# libsndfile's names of containers and encodings, the bits that survive (None: a lossy encoding), and the suffix.
ENCODINGS = (
    *(("WAV", encoding, bits, ".wav") for encoding, bits in (("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24))),
    *(("WAV", encoding, bits, ".wav") for encoding, bits in (("PCM_32", 32), ("FLOAT", 24), ("DOUBLE", 24))),
    *(("WAV", encoding, None, ".wav") for encoding in ("ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")),
    *((container, "PCM_16", 16, ".wav") for container in ("WAVEX", "RF64")),
    *(("AIFF", encoding, bits, ".aiff") for encoding, bits in (("PCM_S8", 8), ("PCM_16", 16), ("FLOAT", 24))),
    *(("AU", encoding, bits, ".au") for encoding, bits in (("PCM_16", 16), ("ULAW", None), ("FLOAT", 24))),
    *(("W64", encoding, bits, ".w64") for encoding, bits in (("PCM_16", 16), ("PCM_24", 24))),
    *(("NIST", encoding, bits, ".sph") for encoding, bits in (("PCM_16", 16), ("ULAW", None))),
    *(("FLAC", encoding, bits, ".flac") for encoding, bits in (("PCM_S8", 8), ("PCM_16", 16), ("PCM_24", 24))),
    *(("OGG", encoding, None, suffix) for encoding, suffix in (("VORBIS", ".ogg"), ("OPUS", ".opus"))),
    ("MP3", "MPEG_LAYER_III", None, ".mp3"),
)


@dataclass(frozen=True, repr=False)
class Audio:
    """An audio file.

    Args:
        container: As libsndfile calls it.
        encoding: As libsndfile calls it.
        suffix: That its name has.
        data: The file's bytes.
        rate: Its sample rate in Hz.
        truth: Its samples (frames, channels), float32.
    """

    container: str
    encoding: str
    suffix: str
    data: bytes
    rate: int
    truth: np.ndarray

    def __repr__(self) -> str:
        return f"Audio({self.container} {self.encoding}, {self.truth.shape} at {self.rate} Hz, {len(self.data)} bytes)"

    @property
    def mono(self) -> np.ndarray:
        return self.truth.mean(axis=1, dtype=np.float32)

    @property
    def lossless(self) -> bool:
        return any((self.container, self.encoding, bits is not None) == (one, other, True)
                   for one, other, bits, _ in ENCODINGS)  # fmt: skip


# Lengths around those at which the number of frames changes are as likely as all others together.
LENGTHS = st.one_of(st.integers(0, 4000), st.sampled_from((0, 1, 399, 400, 401, 719, 720, 721)))


@st.composite
def audio_files(draw, frames=LENGTHS):
    """Audio files of every container and encoding, with samples of every kind."""
    container, encoding, bits, suffix = draw(st.sampled_from(ENCODINGS))
    rates = OPUS_RATES if encoding == "OPUS" else MP3_RATES if container == "MP3" else PCM_RATES
    rate = draw(st.sampled_from(rates))
    channels = 1 if encoding == "GSM610" else draw(st.sampled_from((1, 1, 2) if bits is None else (1, 1, 2, 3)))
    size = draw(frames)
    samples = _samples(draw, size, channels)
    file = io.BytesIO()
    if encoding in ("FLOAT", "DOUBLE"):
        truth = samples.astype(np.float32)
        soundfile.write(file, truth, rate, encoding, format=container)
    elif bits is not None:
        integers = np.round(samples * 2.0 ** (bits - 1)).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        truth = (integers / 2.0 ** (bits - 1)).astype(np.float32)
        soundfile.write(file, (integers * 2.0 ** (32 - bits)).astype(np.int32), rate, encoding, format=container)
    else:
        soundfile.write(file, samples, rate, encoding, format=container)
        truth = None
    data = file.getvalue()
    if truth is None:
        truth = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0] if size else samples
    return Audio(container, encoding, suffix, data, rate, truth.astype(np.float32))


def _samples(draw, frames: int, channels: int) -> np.ndarray:
    kind = draw(st.sampled_from(("noise", "noise", "quiet", "silence", "loud", "constant", "click")))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    noise = generator.uniform(-1, 1, size=(frames, channels))
    if kind == "click":
        click = np.zeros_like(noise)
        click[: frames // 2 + 1][-1:] = 0.9
        return click
    scales = {"noise": 0.3, "quiet": 1e-4, "silence": 0.0, "loud": 1.0}
    return np.full_like(noise, 0.5) if kind == "constant" else noise * scales[kind]


# Damage ---------------------------------------------------------------------------------------------------------------

KINDS = ("cut", "flip", "zero", "repeat", "append", "insert")


@st.composite
def damage(draw, kinds=KINDS, most: int = 2):
    """Functions from bytes to damaged bytes; most changes are near the beginning, where headers are."""
    changes = draw(st.lists(st.tuples(st.sampled_from(kinds), _places, st.integers(1, 64)), min_size=1, max_size=most))
    junk = draw(st.binary(min_size=1, max_size=64))
    return Damage(tuple(changes), junk)


_places = st.one_of(st.integers(0, 120), st.floats(0, 1))


@dataclass(frozen=True)
class Damage:
    changes: tuple
    junk: bytes

    def __call__(self, data: bytes) -> bytes:
        for kind, place, size in self.changes:
            at = min(place if isinstance(place, int) else int(place * len(data)), len(data))
            if kind == "cut":
                data = data[:at]
            elif kind == "flip" and at < len(data):
                data = data[:at] + bytes([data[at] ^ (1 << size % 8)]) + data[at + 1 :]
            elif kind == "zero":
                data = data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]
            elif kind == "repeat":
                data = data[: at + size] + data[at:]
            elif kind == "append":
                data = data + self.junk
            elif kind == "insert":
                data = data[:at] + self.junk + data[at:]
        return data


# Manifests ------------------------------------------------------------------------------------------------------------

# Names as corpora have them, and as they should not.
names = st.one_of(
    st.from_regex(r"\A[a-z0-9_.-]{1,12}\Z"),
    st.text(st.characters(exclude_characters="/\0\n\r", exclude_categories=("Cs",)), min_size=1, max_size=12),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def to_json(value) -> str:
    """Write JSON as strangers do, NaN and all, in characters or in escapes."""
    return json.dumps(value, ensure_ascii=len(str(value)) % 2 == 0)
