"""Reading, writing and resampling of waveforms.

One rule holds for everything that reads audio: what is read is the whole recording, or the file is refused. A file is
refused, in one sentence that names it, if its header gives a length that it does not have, if it is still being copied,
or if it holds several recordings. Where a header marks its length as unknown, as programs that write to a pipe
do, or a format states none, the recording is everything up to the end of the file.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from wavcube_plugins.containers import AudioError, check_whole, seeks_exactly
from wavcube_plugins.files import atomic_path

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".sph")

# Names that audio is published under besides: other containers, numbered (.WV1 of WSJ, .wav.1) and packed files.
_FOREIGN_AUDIO = re.compile(
    r"\.(wv\d?|wave|aac|m4a|m4b|mp4|mp2|mp1|mka|webm|wma|amr|3gp|ape|tta|oga|spx|snd|voc|caf|gsm|raw|pcm|nist|sphere"
    r"|(wav|flac|ogg|opus|mp3|aiff?|au|w64|sph)([._~]?\d+|~|\.(gz|bz2|xz|zst|shn|part|crdownload|tmp)))$"
)

# Suffixes we write, with libsndfile's names of the format and of the encoding (None is the format's own choice).
_WRITERS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".aiff": ("AIFF", "PCM_16"),
    ".aif": ("AIFF", "PCM_16"),
    ".au": ("AU", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", None),
}

# Files are read and written in blocks: many channels are never in memory at once, a header with a wrong length
# allocates little, and libsndfile's Vorbis encoder overflows its stack on very long buffers.
_BLOCK = 1 << 18

# Rates outside this range come from broken headers; resampling from them would take endless memory.
_LOWEST_RATE, _HIGHEST_RATE = 1000, 1_000_000

# Zero crossings on each side of the resampling filter, and its cutoff as a fraction of the lower Nyquist frequency.
_FILTER_WIDTH, _ROLLOFF = 32, 0.99

# torchaudio's resampler tabulates its filter for every phase; above this many numbers (odd pairs of rates such as
# 22,254 and 16,000 Hz) the table would take gigabytes.
_LARGEST_FILTER_TABLE = 2_000_000


class AudioWarning(UserWarning):
    """A file was used, but not as it is; the message names the file and says what was done."""


@dataclass(frozen=True)
class AudioInfo:
    """Sample rate, samples per channel, and channels of a file."""

    sample_rate: int
    num_frames: int
    num_channels: int

    @property
    def seconds(self) -> float:
        return self.num_frames / self.sample_rate


def read_info(path: str | os.PathLike) -> AudioInfo:
    """Return sample rate, length and channels of a file without decoding it.

    The length is the one that `read_audio` gives, or the file is refused by the same rule. Only damage that shows in
    nothing but the decoded samples, or in the middle of a compressed file, is left to `read_audio`.

    Raises:
        AudioError: no such file, no audio that libsndfile reads, or not as long as its header says.
    """
    with _open(path) as (file, frames):
        return AudioInfo(file.samplerate, frames, file.channels)


def read_audio(
    path: str | os.PathLike,
    sample_rate: int = 16000,
    *,
    start: int = 0,
    num_frames: int | None = None,
    channel: int | None = None,
) -> Tensor:
    """Read a file as one mono float32 waveform at the wanted sample rate.

    Args:
        path: Any format libsndfile reads.
        sample_rate: Wanted rate in Hz; other rates are resampled.
        start: First sample to read, counted at the file's own rate.
        num_frames: Samples to read, at the file's own rate; None reads to the end. Fewer come back if the recording
            ends earlier.
        channel: The channel to read, counted from 0; None averages all of them.

    Returns:
        The waveform (T,), in -1 … 1. Where several channels are averaged, an `AudioWarning` says so.

    Raises:
        AudioError: unreadable, shorter or longer than its header says (even if only a part is wanted), several
            recordings in one file, changed while it was read, empty, or with samples that are not finite; the message
            names the file.
    """
    with _open(path, thorough=start == 0 and num_frames is None) as (file, frames):
        rate, channels = file.samplerate, file.channels
        if channel is not None and not 0 <= channel < channels:
            raise AudioError(f"{path}: has {channels} channels, counted from 0, and no channel {channel}")
        available = frames - start
        if start and available <= 0:
            raise AudioError(f"{path}: ends at sample {frames}, before the wanted start at {start}")
        wanted = available if num_frames is None else min(num_frames, available)
        samples = _read_samples(path, file, start, wanted, channel)
        # Decoders of MP3 differ by a few frames; all other formats count exactly.
        allowed = 4096 if file.format == "MP3" else 0
    if wanted - len(samples) > allowed:
        raise AudioError(f"{path}: cut short, {len(samples)} of {wanted} samples could be read")
    if not len(samples):
        raise AudioError(f"{path}: has no samples")
    if channels > 1 and channel is None:
        warnings.warn(f"{path}: {channels} channels, mixed down to one", AudioWarning, stacklevel=2)
    return resample(torch.from_numpy(samples), rate, sample_rate)


def _read_samples(
    path: str | os.PathLike, file: soundfile.SoundFile, start: int, wanted: int, channel: int | None
) -> np.ndarray:
    """Read samples of one channel, or of the mean of all channels, block by block; fewer where the file ends."""
    # One array that grows in place: joining blocks would hold them twice.
    samples, count = np.empty(min(_BLOCK, wanted), dtype=np.float32), 0
    try:
        _seek(file, start)
        while count < wanted:
            block = file.read(min(_BLOCK, wanted - count), dtype="float32", always_2d=True)
            if not len(block):
                break
            if not np.isfinite(block).all():
                raise AudioError(f"{path}: has samples that are NaN or infinite")
            end = count + len(block)
            if end > len(samples):
                samples.resize(min(2 * end, wanted), refcheck=False)
            mean = channel is None and file.channels > 1
            samples[count:end] = block.mean(axis=1) if mean else block[:, channel or 0]
            count = end
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: broken or cut short, {_reason(error)}") from error
    samples.resize(count, refcheck=False)
    return samples


def write_audio(path: str | os.PathLike, waveform: Tensor, sample_rate: int = 16000) -> None:
    """Write a mono waveform (T,) as 16-bit audio in the format of the path's suffix, atomically.

    Samples outside -1 … 1 are clipped.

    Raises:
        AudioError: the suffix names no format that we write, or the waveform is not mono, not floating point or not
            finite.
        OSError: the file cannot be written; the error names it.
    """
    check_suffix(path)
    if waveform.ndim != 1:
        raise AudioError(f"{path}: a waveform to write must have shape (samples,), got {tuple(waveform.shape)}")
    if not waveform.is_floating_point():
        raise AudioError(
            f"{path}: a waveform to write must be floating point in -1 … 1, got {waveform.dtype}; divide integers first"
        )
    if not torch.isfinite(waveform).all():
        raise AudioError(f"{path}: the waveform to write has samples that are NaN or infinite")
    samples = waveform.detach().float().clamp(-1, 1).cpu().numpy()
    container, encoding = _WRITERS[Path(path).suffix.lower()]
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", sample_rate, 1, encoding, format=container) as file:
            for begin in range(0, len(samples), _BLOCK):
                file.write(samples[begin : begin + _BLOCK])
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: cannot be written, {_reason(error)}") from error
    # Not by libsndfile, which would not say why, such as that the disk is full.
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def check_suffix(path: str | os.PathLike) -> None:
    """Check that audio can be written by this name.

    Raises:
        AudioError: the suffix names no format that we write.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise AudioError(f"{path}: cannot write audio as {suffix or 'a file without suffix'!r}; use .wav or .flac")


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Resample (..., T) with a windowed sinc; T becomes ceil(T * target_rate / source_rate)."""
    if source_rate == target_rate:
        return waveform
    divisor = math.gcd(source_rate, target_rate)
    phases, period = target_rate // divisor, source_rate // divisor
    reach = math.ceil(_FILTER_WIDTH * source_rate / (min(source_rate, target_rate) * _ROLLOFF))
    if phases * (2 * reach + period) > _LARGEST_FILTER_TABLE:
        return _resample_directly(waveform, period, phases, reach)
    return torchaudio.functional.resample(
        waveform, source_rate, target_rate, lowpass_filter_width=_FILTER_WIDTH, rolloff=_ROLLOFF
    )


def _resample_directly(waveform: Tensor, source_rate: int, target_rate: int, reach: int) -> Tensor:
    # torchaudio's filter (sinc under a Hann window), evaluated where it is needed instead of tabulated.
    cutoff = min(source_rate, target_rate) * _ROLLOFF / source_rate
    length = -(-waveform.shape[-1] * target_rate // source_rate)
    taps = 2 * reach + 1
    windows = torch.nn.functional.pad(waveform, (reach, reach + 1)).unfold(-1, taps, 1)
    pieces = []
    for begin in range(0, length, _BLOCK // taps):
        numerators = torch.arange(begin, min(begin + _BLOCK // taps, length), device=waveform.device) * source_rate
        nearest = numerators // target_rate
        fraction = (numerators % target_rate).double() / target_rate
        offsets = torch.arange(-reach, reach + 1, device=waveform.device) - fraction[:, None]
        phase = (offsets * cutoff).clamp(-_FILTER_WIDTH, _FILTER_WIDTH)
        kernel = torch.sinc(phase) * torch.cos(phase * (math.pi / 2 / _FILTER_WIDTH)).square() * cutoff
        pieces.append((windows[..., nearest, :] * kernel.to(waveform.dtype)).sum(-1))
    return torch.cat(pieces, dim=-1)


def find_audio(folder: str | os.PathLike, overlook: Callable[[Path, str], object] | None = None) -> list[Path]:
    """List the audio files below a folder, sorted, by their suffixes.

    Links to folders are followed, once each; names that begin with a dot are left out.

    Args:
        folder: Where to search.
        overlook: Called with every path that may hold speech but cannot be listed, and the reason. Without it an
            `AudioWarning` counts them and names the first.
    """
    overlooked: list[tuple[Path, str]] = []

    def unlistable(error: OSError) -> None:
        overlooked.append((Path(error.filename), f"cannot be listed, {(error.strerror or str(error)).lower()}"))

    found, visited = [], set()
    for parent, folders, names in os.walk(folder, onerror=unlistable, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            known = path.suffix.lower() in AUDIO_SUFFIXES
            if known and path.is_file():
                found.append(path)
            elif path.is_symlink() and not path.exists():
                if known or not path.suffix:  # a link without suffix may have led to a folder
                    overlooked.append((path, "a broken link"))
            elif not known and _FOREIGN_AUDIO.search(path.name.lower()):
                overlooked.append((path, f"the suffix {path.suffix} is not read"))
    if overlook is not None:
        for path, reason in overlooked:
            overlook(path, reason)
    elif overlooked:
        warnings.warn(describe_overlooked(overlooked), AudioWarning, stacklevel=2)
    return sorted(found)


def describe_overlooked(overlooked: Sequence[tuple[Path, str]]) -> str:
    """Say in one line how many paths a search could not use, and name the first."""
    first = ", ".join(f"{path} ({reason})" for path, reason in overlooked[:3])
    more = f", and {len(overlooked) - 3} more" if len(overlooked) > 3 else ""
    return f"{len(overlooked)} {'path' if len(overlooked) == 1 else 'paths'} left out of the search: {first}{more}"


class _SoundFile(soundfile.SoundFile):
    """A file that is read from the start where libsndfile seeks, but not to the exact sample."""

    def __init__(self, name: Any):
        super().__init__(name)
        self._exact = seeks_exactly(name, self.format, self.subtype, self.extra_info)

    def seekable(self) -> bool:
        return self._exact and super().seekable()


@contextmanager
def _open(path: str | os.PathLike, *, thorough: bool = False) -> Iterator[tuple[soundfile.SoundFile, int]]:
    """Open a file and yield it with its samples per channel, after checking that it is whole."""
    try:
        if not Path(path).is_file():
            kind = "folder" if Path(path).is_dir() else "pipe or a device"
            raise AudioError(f"{path}: {f'is a {kind}, not a file' if Path(path).exists() else 'no such file'}")
        file = _SoundFile(_name(path))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: not readable as audio, {_reason(error)}") from error
    except OSError as error:
        raise AudioError(f"{path}: not readable, {(error.strerror or str(error)).lower()}") from error
    except TypeError as error:
        # soundfile asks for the sample rate of formats without a header, by their suffix (.raw).
        raise AudioError(f"{path}: not readable as audio, format without a header") from error
    with file:
        if file.format == "RAW":  # what libsndfile takes a headerless .au, .vox or .gsm for
            raise AudioError(f"{path}: not readable as audio, it has no header")
        if not _LOWEST_RATE <= file.samplerate <= _HIGHEST_RATE:
            raise AudioError(f"{path}: the header gives a sample rate of {file.samplerate} Hz, which no audio has")
        # libsndfile's mark for "unknown", left by encoders that wrote to a pipe.
        if file.frames >= 2**62:
            raise AudioError(f"{path}: the header does not give the length; rewrite the file, for example with ffmpeg")
        before = _state(path)
        try:
            frames = _checked(_name(path), *before, file.format, file.frames, file.extra_info, thorough)
        except AudioError as error:
            raise AudioError(f"{path}: {error}") from None
        except OSError as error:
            raise AudioError(f"{path}: not readable, {(error.strerror or str(error)).lower()}") from error
        except (struct.error, IndexError) as error:
            raise AudioError(f"{path}: broken or cut short, its header is not whole") from error
        yield file, frames
        if _state(path) != before:
            raise AudioError(f"{path}: changed while it was read; it may still be being copied")


def _state(path: str | os.PathLike) -> tuple[int, int]:
    """Return size and time of a file, which tell whether it changes."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise AudioError(f"{path}: not readable, {(error.strerror or str(error)).lower()}") from error
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1024)  # training reads many parts of the same files
def _checked(name: str | bytes, size: int, changed: int, container: str, frames: int, log: str, thorough: bool) -> int:
    return check_whole(name, container, frames, log, thorough=thorough)


def _seek(file: soundfile.SoundFile, start: int) -> None:
    if file.seekable():
        file.seek(start)
        return
    # GSM 6.10, G.721 and some others can only be read from the start, an MP3 file of variable bitrate only so exactly.
    while start > 0:
        skipped = len(file.read(min(_BLOCK, start), dtype="float32"))
        if not skipped:
            return
        start -= skipped


def _name(path: str | os.PathLike) -> Any:  # soundfile's annotations lack bytes
    # soundfile refuses the names of files that are not UTF-8, unless they come as bytes.
    return os.fsencode(path) if os.name == "posix" else os.fspath(path)


def _reason(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1].rstrip(".").lower() or "libsndfile refuses it"
