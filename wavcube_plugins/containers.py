"""Whether an audio file holds as much as its container says.

libsndfile reads what is there: of a file that was cut short, the rest; of a file whose header gives too small a length,
the beginning; of several recordings joined into one file, often the first. None of these is an error to it. Here the
length that a container states is compared with what the file holds, from the headers of its chunks, pages and frames;
nothing is decoded.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from wavcube_plugins.errors import InputError

# The most zeros at the end of a file that are taken for padding: some programs fill whole sectors.
_LONGEST_PADDING = 1 << 16

# Sizes that mean "unknown": programs that write to a pipe leave them, and mean everything up to the end.
_UNKNOWN_32 = ((0x7FFF0000, 0x80000000), (0xFFFF0000, 0xFFFFFFFF))

# Chunks with notes that commonly follow the samples; if one of them is cut off, the samples are still whole.
_NOTES = (b"LIST", b"INFO", b"id3 ", b"ID3 ", b"bext", b"iXML", b"_PMX", b"cue ", b"smpl", b"PEAK", b"NAME", b"ANNO")

_CUT = "cut short or still being copied"


class AudioError(InputError):
    """A file or a waveform cannot be used; the message names it and says why."""


def check_whole(name: str | bytes, container: str, frames: int, log: str, *, thorough: bool) -> int:
    """Check that a file is as long as its container says, and return the number of samples per channel.

    The rule: what is read is the whole recording, or the file is refused. A length that the container marks as unknown
    means everything up to the end of the file, and so does a format that states none.

    Args:
        name: The file.
        container: libsndfile's name of its format, such as `WAV` or `OGG`.
        frames: Samples per channel by libsndfile's reckoning.
        log: What libsndfile noted when it opened the file.
        thorough: Look at every page or frame of compressed formats, for a file that will be read whole anyway; else
            at the first and last ones.

    Returns:
        Samples per channel; by our own count for an MP3 file without a table of its length.

    Raises:
        AudioError: the file is shorter or longer than it says, or holds several recordings. The message lacks the name.
    """
    with open(name, "rb") as file:
        stream = _Stream(file)
        check = _CHECKS.get(container)
        if check is not None:
            return check(stream, frames, thorough)
    _check_log(log, frames)
    return frames


def seeks_exactly(name: str | bytes, container: str, encoding: str, log: str) -> bool:
    """Return whether libsndfile finds a sample in the middle of a file exactly; arguments as in `check_whole`.

    In an MP3 file of variable bitrate it goes by a table of a hundred places; in DWVW and in some rare formats it fails
    although it says that it can.
    """
    if container == "MP3":
        if not re.search(r"bitrate mode +: constant", log):
            return False
        with open(name, "rb") as file:
            stream = _Stream(file)
            start = _first_mp3_frame(stream)
            return start is not None and _mp3_table(stream.read(start, 512)) is not None
    return "DWVW" not in encoding and container != "SDS" and (container, encoding) != ("PAF", "PCM_24")


class _Stream:
    """A file read at given places, without its ID3 tags at either end."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.start, self.end = 0, os.fstat(file.fileno()).st_size
        while self.read(self.start, 3) == b"ID3" and self.end - self.start >= 10:
            sizes = self.read(self.start + 6, 4)
            footer = 10 if self.read(self.start + 5, 1)[0] & 0x10 else 0
            self.start += 10 + footer + sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(sizes))
        if self.end - self.start >= 128 and self.read(self.end - 128, 3) == b"TAG":
            self.end -= 128

    def read(self, position: int, count: int) -> bytes:
        self.file.seek(position)
        return self.file.read(count)

    def blocks(self, position: int, overlap: int) -> Iterator[bytes]:
        """Yield everything from a place on in blocks, each beginning with the last bytes of the one before."""
        before = b""
        while position < self.end:
            block = self.read(position, 1 << 22)
            yield before + block
            position, before = position + len(block), block[-overlap:]
            if not block:
                return

    def check_end(self, position: int) -> None:
        """Check that only padding and tags follow a place."""
        if position > self.end:
            raise AudioError(f"{_CUT}: its header promises {position - self.end:,} bytes more than the file has")
        left = self.end - position
        if self.read(position, 8) in (b"APETAGEX", b"LYRICSBE") or self.read(position, 3) == b"ID3":
            return
        if left > _LONGEST_PADDING or self.read(position, left).strip(b"\0"):
            raise AudioError(f"holds {left:,} bytes more than its header says; the length in it is wrong")


# Chunks: WAV, RF64, AIFF, 8SVX, W64, CAF ------------------------------------------------------------------------------


def _check_riff(stream: _Stream, frames: int, thorough: bool) -> int:
    magic = stream.read(stream.start, 4)
    order = ">" if magic in (b"RIFX", b"FORM") else "<"
    data = {b"FORM": (b"SSND", b"BODY")}.get(magic, (b"data",))
    large = None  # RF64 keeps sizes of more than 32 bits in its first chunk
    position = stream.start + 12
    found = False
    while True:
        header = stream.read(position, 8)
        if len(header) < 8 or position + 8 > stream.end:
            break
        identifier, size = header[:4], struct.unpack(f"{order}I", header[4:])[0]
        if identifier == b"ds64":
            large = struct.unpack("<Q", stream.read(position + 16, 8))[0]
        if identifier in data:
            if found:
                raise AudioError("holds several chunks of samples")
            found = True
            if size == 0xFFFFFFFF and large:
                size = large
            if _is_unknown(size) and (size == 0 or position + 8 + size > stream.end):
                return frames
        position = _next_chunk(stream, position, 8 + size, identifier, found=found, is_data=identifier in data)
        if position is None:
            return frames
    if found:
        stream.check_end(min(position, stream.end))
    return frames


def _next_chunk(
    stream: _Stream, position: int, size: int, identifier: bytes, *, found: bool, is_data: bool
) -> int | None:
    """Return where the next chunk begins, after a byte of padding if there is one; None if the rest does not matter."""
    end = position + size
    if not found or is_data:
        if end > stream.end:
            raise AudioError(f"{_CUT}: its header promises {end - stream.end:,} bytes more than the file has")
    elif not _is_identifier(identifier) or identifier in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
        stream.check_end(position)
        return None
    elif end > stream.end:
        if identifier in _NOTES:
            return None
        stream.check_end(position)
    if size % 2 and end < stream.end and not (_is_identifier(stream.read(end, 4)) and stream.read(end, 1) != b"\0"):
        end += 1
    return end


def _is_identifier(identifier: bytes) -> bool:
    return len(identifier) == 4 and all(32 <= byte < 127 for byte in identifier)


def _is_unknown(size: int) -> bool:
    return size == 0 or size >= 1 << 62 or any(least <= size <= most for least, most in _UNKNOWN_32)


def _check_w64(stream: _Stream, frames: int, thorough: bool) -> int:
    position = stream.start + 40
    while position + 24 <= stream.end:
        identifier, size = struct.unpack("<16sQ", stream.read(position, 24))
        if identifier[:4] == b"data":
            if size <= 24 or size >= 1 << 62:
                return frames
            return _check_trailing_chunks(stream, position + size, frames)
        position += max(24, (size + 7) // 8 * 8)
    return frames


def _check_trailing_chunks(stream: _Stream, position: int, frames: int) -> int:
    """Check what follows the samples of a W64 file: chunks that begin at multiples of eight bytes, or nothing."""
    if position > stream.end:
        stream.check_end(position)
    position = min((position + 7) // 8 * 8, stream.end)
    while position + 24 <= stream.end:
        identifier, size = struct.unpack("<16sQ", stream.read(position, 24))
        if identifier[:4] == b"riff" or not _is_identifier(identifier[:4]) or not 24 <= size <= stream.end - position:
            break
        position = min(position + (size + 7) // 8 * 8, stream.end)
    stream.check_end(position)
    return frames


def _check_caf(stream: _Stream, frames: int, thorough: bool) -> int:
    position, found = stream.start + 8, False
    while position + 12 <= stream.end:
        identifier, size = struct.unpack(">4sq", stream.read(position, 12))
        if identifier == b"data":
            if size < 0:
                return frames
            found = True
        elif found and (not _is_identifier(identifier) or size < 0):
            break
        position += 12 + max(0, size)
        if position > stream.end:
            stream.check_end(position)
    if found:
        stream.check_end(position)
    return frames


# One length in a header: AU, NIST SPHERE, VOC -------------------------------------------------------------------------


def _check_au(stream: _Stream, frames: int, thorough: bool) -> int:
    order = ">" if stream.read(stream.start, 4) == b".snd" else "<"
    offset, size = struct.unpack(f"{order}II", stream.read(stream.start + 4, 8))
    if not _is_unknown(size):
        stream.check_end(stream.start + offset + size)
    return frames


def _check_nist(stream: _Stream, frames: int, thorough: bool) -> int:
    header = stream.read(stream.start, 1024).decode("latin-1")
    size = re.match(r"NIST_1A\s+(\d+)", header)
    fields = dict(re.findall(r"(\w+) -\w+ (\d+)", header))
    if size is None or not {"sample_count", "channel_count", "sample_n_bytes"} <= fields.keys():
        return frames
    count, channels, width = (int(fields[name]) for name in ("sample_count", "channel_count", "sample_n_bytes"))
    stream.check_end(stream.start + int(size[1]) + count * channels * width)
    return frames


def _check_voc(stream: _Stream, frames: int, thorough: bool) -> int:
    position = stream.start + struct.unpack("<H", stream.read(stream.start + 20, 2))[0]
    while position < stream.end:
        block = stream.read(position, 4)
        if block[0] == 0:  # the terminator
            stream.check_end(position + 1)
            return frames
        if len(block) < 4:
            break
        position += 4 + int.from_bytes(block[1:], "little")
    stream.check_end(position)
    return frames


def _check_sds(stream: _Stream, frames: int, thorough: bool) -> int:
    """Check a MIDI sample dump: a header of 21 bytes, then packets of 127 bytes that hold 120 bytes of samples."""
    header = stream.read(stream.start, 21)
    if len(header) < 21:
        raise AudioError(f"{_CUT}: its header is not whole")
    count = header[10] | header[11] << 7 | header[12] << 14
    per_packet = 120 // -(-header[6] // 7) if header[6] else 1
    stream.check_end(stream.start + 21 + 127 * -(-count // per_packet))
    return frames


# FLAC -----------------------------------------------------------------------------------------------------------------

# Bytes at the end of a FLAC file in which its last frame is looked for, at least.
_FLAC_TAIL = 1 << 16
_FLAC_BEGIN = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")


def _check_flac(stream: _Stream, frames: int, thorough: bool) -> int:
    if frames >= 1 << 62:  # unknown, which `audio` refuses
        return frames
    info = stream.read(stream.start + 8, 34)
    if thorough and any(_FLAC_BEGIN.search(block) for block in stream.blocks(stream.start + 8, 16)):
        raise AudioError("holds several recordings, one after the other")
    begin = max(stream.start, stream.end - max(_FLAC_TAIL, int.from_bytes(info[7:10], "big")))
    tail = stream.read(begin, stream.end - begin)
    if tail.endswith(bytes(64)):  # padding, which hides where the last frame ends; decoding will tell
        return frames
    last = _last_flac_sample(tail, int.from_bytes(info[0:2], "big"))
    if last is None:
        raise AudioError(f"broken or {_CUT}: it does not end in a whole frame")
    if last != frames:
        raise AudioError(f"{_CUT}, or its header is wrong: it promises {frames:,} samples and ends after {last:,}")
    return frames


def _last_flac_sample(tail: bytes, block_size: int) -> int | None:
    """Return the sample at which the last frame ends, None if the file does not end with a frame."""
    candidates = [match.start() for match in re.finditer(rb"\xff[\xf8\xf9]", tail)]
    tried = 0
    for position in reversed(candidates):
        header = _flac_frame_header(tail[position : position + 16], block_size)
        if header is None:
            continue
        if _crc(tail[position:-2], 16, 0x8005) == int.from_bytes(tail[-2:], "big"):
            return sum(header)
        tried += 1
        if tried == 8:
            break
    return None


def _flac_frame_header(header: bytes, block_size: int) -> tuple[int, int] | None:
    """Return a frame's first sample and its number of samples, None if it is not the header of a frame."""
    if len(header) < 6:
        return None
    # The number of the frame, or of its first sample, is coded as UTF-8 codes a character.
    ones = 8 - (header[4] ^ 0xFF).bit_length()
    count = max(1, ones)
    if ones in (1, 8) or len(header) < 4 + count + 5:
        return None
    number = header[4] & (0x7F >> ones if ones else 0x7F)
    for byte in header[5 : 4 + count]:
        number = number << 6 | byte & 0x3F
    position = 4 + count
    size_code, rate_code = header[2] >> 4, header[2] & 15
    if size_code == 0:  # reserved, so these bytes are samples
        return None
    if size_code in (6, 7):
        width = size_code - 5
        samples = int.from_bytes(header[position : position + width], "big") + 1
        position += width
    elif size_code == 1:
        samples = 192
    else:
        samples = 576 << (size_code - 2) if size_code < 6 else 256 << (size_code - 8)
    position += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if _crc(header[:position], 8, 0x07) != header[position]:
        return None
    return (number if header[1] & 1 else number * block_size), samples


def _crc(content: bytes, bits: int, polynomial: int) -> int:
    table, mask, value = _crc_table(bits, polynomial), (1 << bits) - 1, 0
    for byte in content:
        value = (value << 8 & mask) ^ table[value >> (bits - 8) ^ byte]
    return value


@lru_cache(maxsize=2)
def _crc_table(bits: int, polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return table


# Ogg ------------------------------------------------------------------------------------------------------------------


def _check_ogg(stream: _Stream, frames: int, thorough: bool) -> int:
    begin = stream.start
    if not thorough:  # the last page tells nearly everything
        window = max(stream.start, stream.end - (1 << 17))
        found = stream.read(window, stream.end - window).rfind(b"OggS")
        begin = window + max(0, found)
    first, position, last, seen_data = stream.read(stream.start + 14, 4), begin, 0, False
    while position + 27 <= stream.end:
        header = stream.read(position, 27)
        if header[:4] != b"OggS":
            break
        last, serial, segments = header[5], header[14:18], stream.read(position + 27, header[26])
        if (last & 2 and seen_data) or (serial != first and not thorough):
            raise AudioError("holds several recordings, one after the other")
        seen_data = seen_data or not last & 2
        position += 27 + len(segments) + sum(segments)
    if position > stream.end or not last & 4:
        raise AudioError(f"{_CUT}: its last page is missing")
    stream.check_end(position)
    return frames


# MP3 ------------------------------------------------------------------------------------------------------------------

_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_MP3_KBPS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# Frames that encoders and decoders may add or drop.
_MP3_SLACK = 3


class _Mp3Frame(NamedTuple):
    size: int  # bytes
    samples: int
    format: tuple[int, int, int]  # version, layer and sample rate


def _mp3_frame(header: bytes) -> _Mp3Frame | None:
    """Read a frame's header; None if it is none, or of a free format, whose frames cannot be counted."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _MP3_RATES[version][rate]
    bits = _MP3_KBPS[1 if version == 3 else 2, layer][bitrate] * 1000
    padding = header[2] >> 1 & 1
    if layer == 1:
        return _Mp3Frame((12 * bits // hertz + padding) * 4, 384, (version, layer, hertz))
    samples = 576 if layer == 3 and version != 3 else 1152
    return _Mp3Frame(samples // 8 * bits // hertz + padding, samples, (version, layer, hertz))


def _check_mp3(stream: _Stream, frames: int, thorough: bool) -> int:
    if stream.read(stream.start, 4) == b"RIFF":
        _check_riff(stream, frames, thorough)
        return frames
    position = _first_mp3_frame(stream)
    if position is None:  # a free format, or something only the decoder understands
        return frames
    first = stream.read(position, 512)
    frame = _mp3_frame(first)
    assert frame is not None
    table = _mp3_table(first)
    if table is not None:
        promised, size = table
        if not thorough and size and 0 <= stream.end - position - size <= frame.size:
            return frames
    counted = _count_mp3_frames(stream, position, frame.format) - (table is not None)
    if table is None:
        # Without a table libsndfile works out the length from the first frame alone, and stops there.
        if frames < (counted - _MP3_SLACK) * frame.samples:
            raise AudioError(
                "has no table of its length, and its first frame misleads; re-encode it, for example with ffmpeg"
            )
        return min(frames, counted * frame.samples)
    if promised is not None and abs(promised - counted) > 1:
        problem = _CUT if counted < promised else "its table of length is wrong"
        raise AudioError(f"{problem}: it promises {promised:,} frames and holds {counted:,}")
    return frames


def _first_mp3_frame(stream: _Stream) -> int | None:
    """Return where the first frame begins that another one follows."""
    window = stream.read(stream.start, 1 << 16)
    for match in re.finditer(rb"\xff[\xe0-\xff]", window):
        position = stream.start + match.start()
        frame = _mp3_frame(window[match.start() : match.start() + 4])
        if frame is None:
            continue
        following = _mp3_frame(stream.read(position + frame.size, 4))
        if (following is not None and following.format == frame.format) or position + frame.size >= stream.end:
            return position
    return None


def _mp3_table(frame: bytes) -> tuple[int | None, int | None] | None:
    """Return the number of frames and bytes in the table of a file's first frame, None if it has no table."""
    mpeg1, mono = frame[1] >> 3 & 3 == 3, frame[3] >> 6 == 3
    place = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        size, count = struct.unpack(">II", frame[46:54])
        return count, size
    if frame[place : place + 4] not in (b"Xing", b"Info"):
        return None
    flags = int.from_bytes(frame[place + 4 : place + 8], "big")
    place += 8
    count = size = None
    if flags & 1:
        count, place = int.from_bytes(frame[place : place + 4], "big"), place + 4
    if flags & 2:
        size = int.from_bytes(frame[place : place + 4], "big")
    return count, size


def _count_mp3_frames(stream: _Stream, position: int, form: tuple[int, int, int]) -> int:
    """Count the frames from the first one to the end of the file.

    Raises:
        AudioError: the last frame is cut off, or something that is no such frame stands between them.
    """
    count = 0
    while position < stream.end:
        header = stream.read(position, 48)
        frame = _mp3_frame(header)
        if frame is None:
            stream.check_end(position)
            return count
        if frame.format != form or (count and _mp3_table(header.ljust(512, b"\0")) is not None):
            raise AudioError("holds several recordings, one after the other")
        position += frame.size
        count += 1
    if position > stream.end:
        raise AudioError(f"{_CUT}: its last frame is not whole")
    return count


# All others -----------------------------------------------------------------------------------------------------------


def _check_log(log: str, frames: int) -> None:
    """Check a rare format by what libsndfile logs when it opens the file: the length in the header, or a complaint."""
    stated = [int(number) for number in re.findall(r"(?:Frames|Cols) +: (\d+)", log)]
    if "truncated" in log or (stated and frames < stated[-1]):
        raise AudioError(f"{_CUT}: it holds only {frames:,} samples")
    if "should be" in log or (stated and frames > stated[-1]):
        raise AudioError(f"broken or {_CUT}: its {frames:,} samples are not what its header says")


_CHECKS: dict[str, Callable[[_Stream, int, bool], int]] = {
    "WAV": _check_riff,
    "WAVEX": _check_riff,
    "RF64": _check_riff,
    "AIFF": _check_riff,
    "SVX": _check_riff,
    "W64": _check_w64,
    "CAF": _check_caf,
    "AU": _check_au,
    "NIST": _check_nist,
    "VOC": _check_voc,
    "SDS": _check_sds,
    "FLAC": _check_flac,
    "OGG": _check_ogg,
    "MP3": _check_mp3,
}
