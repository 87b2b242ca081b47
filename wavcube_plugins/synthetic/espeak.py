"""Speech synthesised with exact phone labels, by espeak-ng's library as the PyPI wheel `espeakng-loader` carries it.

>>> from wavcube_plugins.synthetic.espeak import EspeakSynthesiser, Voice
>>> with EspeakSynthesiser() as synthesiser:
...     speech = synthesiser.speak("A dog barked.", Voice("en-us", "f3", rate=160))
>>> [phone.label for phone in speech.phones]
['AH', 'D', 'AA', 'G', 'B', 'AA', 'R', 'K', 'T', 'SIL']

The phone set is ARPAbet's 39 phones and SIL. The labels are a broad transcription of what is heard rather than of
what a dictionary says: a Londoner's "here" ends in AH where an American's ends in R, and both say a T in "water".
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from wavcube_plugins.audio import resample
from wavcube_plugins.synthetic.speech import SILENCE, Segment, Speech, SynthesisError

# The accents of English that espeak-ng 1.52 has, by language code, with the file that holds each: not every code is
# accepted as a name by the library.
ACCENTS = {
    "en-us": "gmw/en-US",
    "en-us-nyc": "gmw/en-US-nyc",
    "en-gb": "gmw/en",
    "en-gb-x-rp": "gmw/en-GB-x-rp",
    "en-gb-scotland": "gmw/en-GB-scotland",
    "en-gb-x-gbclan": "gmw/en-GB-x-gbclan",
    "en-gb-x-gbcwmd": "gmw/en-GB-x-gbcwmd",
    "en-029": "gmw/en-029",
}

# espeak-ng's mnemonics as ARPAbet. A sound that ARPAbet writes as two phones is split in the middle of its time.
_MNEMONICS = {
    **{name: name.upper() for name in ("p", "b", "t", "d", "k", "g", "f", "v", "s", "z", "m", "n", "l", "r", "w")},
    **{"T": "TH", "D": "DH", "S": "SH", "Z": "ZH", "tS": "CH", "dZ": "JH", "N": "NG", "h": "HH", "j": "Y"},
    # Flapped, aspirated, glottal and dental t; syllabic n; linking r; Scottish wh and loch.
    **{"t#": "T", "t2": "T", "?": "T", "t[": "T", "n-": "N", "r-": "R", "w#": "W", "x": "K"},
    **{"i:": "IY", "i": "IY", "I": "IH", "I2": "IH", "I#": "IH", "E": "EH", "a": "AE", "aa": "AE", "V": "AH"},
    **{"A:": "AA", "0": "AA", "O:": "AO", "O2": "AO", "O": "AO", "U": "UH", "u:": "UW", "u": "UW", "3:": "ER"},
    **{"@": "AH", "@-": "AH", "@2": "AH", "@5": "AH", "a#": "AH", "@L": "AH L", "3": "AH"},
    **{"eI": "EY", "aI": "AY", "aI2": "AY", "OI": "OY", "oU": "OW", "aU": "AW", "A~": "AA", "O~": "AO", "W": "UW"},
    **{"aI@": "AY AH", "aI3": "AY AH", "i@": "IY AH", "i@3": "IY AH", "U@": "UH AH", "e@": "EH"},
    **{"A@": "AA", "O@": "AO", "o@": "AO", "VR": "AH R", "IR": "AH R"},
}

# Where an accent says it otherwise.
_ACCENT_MNEMONICS = {
    "en-us": {"3": "ER", "aI3": "AY ER", "i@3": "IH R", "U@": "UH R", "e@": "EH R", "A@": "AA R"}
    | {"O@": "AO R", "o@": "AO R"},
    "en-gb-x-rp": {"aa": "AA", "U@": "AO"},
    "en-gb-scotland": {"3": "ER", "i@3": "IH", "U@": "UH R"},
    "en-gb-x-gbclan": {"V": "UH"},
    "en-gb-x-gbcwmd": {"V": "UH", "e@": "ER"},
}

_STOPS = frozenset("B CH D G JH K P T".split())
# A glide into the next vowel that espeak-ng marks by itself; it counts as the end of the vowel before it.
_GLIDE = ";"
_STRESS = "',%="
# Longest closure before a stop, in seconds, that is taken for a part of the stop rather than for a pause.
_LONGEST_CLOSURE = 0.12
# What a phone gets at least, in seconds, where the one before it can give it.
_SHORTEST = 0.03

_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SYNCHRONOUS = 2
_PHONEME_EVENTS = 1
_DONT_EXIT = 0x8000
_UTF8, _END_PAUSE = 1, 0x1000
_IPA, _TIE = 0x02, 0x80
_WORD_EVENT, _PHONEME_EVENT = 1, 7
# The library keeps the path of its data in a buffer of 160 characters and quietly looks elsewhere if it is longer.
_LONGEST_DATA_PATH = 120


@dataclass(frozen=True)
class Voice:
    """Who speaks, and how.

    Args:
        accent: One of `ACCENTS`.
        variant: One of `variants()`, or "" for the accent's own voice.
        rate: Words per minute, 80 … 450.
        pitch: 0 … 99; 50 leaves the variant's own.
        pitch_range: How lively the melody is, 0 … 99; 0 is a monotone, 50 leaves the variant's own.
        volume: 1 … 100.

    Raises:
        ValueError: an unknown accent or a number outside its range.
    """

    accent: str = "en-us"
    variant: str = ""
    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50
    volume: int = 100

    def __post_init__(self):
        if self.accent not in ACCENTS:
            raise ValueError(f"unknown accent {self.accent!r}; choose one of {', '.join(ACCENTS)}")
        limits = {"rate": (80, 450), "pitch": (0, 99), "pitch_range": (0, 99), "volume": (1, 100)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number in {least} … {most}, got {value!r}")

    @property
    def name(self) -> str:
        """The voice as espeak-ng writes it, such as "en-us+f3"."""
        return f"{self.accent}+{self.variant}" if self.variant else self.accent

    @classmethod
    def parse(cls, name: str, **settings: int) -> Voice:
        """Build a voice from a name such as "en-us+f3", with the other settings by keyword."""
        accent, _, variant = name.partition("+")
        return cls(accent, variant, **settings)


def variants() -> tuple[str, ...]:
    """List the voice variants that the installed library has, such as "f3" or "Andy".

    Raises:
        ImportError: the wheel is missing.
    """
    folder = _data_folder() / "voices" / "!v"
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_file()))


def natural_variants() -> tuple[str, ...]:
    """List the variants that sound like a person: those of `variants()` without robots, whispers and echoes."""
    return tuple(name for name in variants() if name not in _UNNATURAL)


def draw_voice(generator: random.Random) -> Voice:
    """Draw one of the natural voices, with a rate, a pitch and a melody of its own.

    The same state of the generator gives the same voice, as long as the library is the same.
    """
    return Voice(
        generator.choice(sorted(ACCENTS)),
        generator.choice(("", *natural_variants())),
        rate=generator.randint(130, 230),
        pitch=generator.randint(20, 85),
        pitch_range=generator.randint(25, 85),
    )


class EspeakSynthesiser:
    """A private copy of espeak-ng's library.

    The library keeps its state in global variables, some of which outlive an utterance, and starts its noise from the
    clock. Every call therefore loads it anew, which costs about 5 ms, so that what is said depends on the text and
    the voice alone, but for the variant Reed, whose noise is another one each time. Instances may be used from several
    threads and may be pickled into worker processes.

    Args:
        sample_rate: Of the waveforms, in Hz. The library's own rate is 22,050 Hz; others are resampled.

    Raises:
        ImportError: the wheel is missing; the message names the command that installs it.
    """

    def __init__(self, *, sample_rate: int = 16000):
        if sample_rate < 1:
            raise ValueError(f"sample_rate must be positive, got {sample_rate}")
        self.sample_rate = sample_rate
        self._variants = frozenset(variants())
        self._lock = threading.Lock()
        folder = tempfile.mkdtemp(prefix="wavcube_espeak_")
        self._finalizer = weakref.finalize(self, _remove_folder, folder, os.getpid())
        # A copy, since another package may have loaded the wheel's own library, which could then never be unloaded.
        self._library = shutil.copy(_wheel().get_library_path(), folder)
        self._data = str(_data_folder())
        if len(self._data) > _LONGEST_DATA_PATH:
            link = os.path.join(folder, "data")
            os.symlink(self._data, link, target_is_directory=True)
            self._data = link

    def __enter__(self) -> EspeakSynthesiser:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __reduce__(self):
        return _unpickle, (self.sample_rate,)

    def close(self) -> None:
        """Remove the private copy; it also goes when the object does."""
        self._finalizer()

    def speak(self, text: str, voice: Voice | str = "en-us") -> Speech:
        """Say a text.

        Args:
            text: Plain English.
            voice: A `Voice`, or the name of one with default settings.

        Raises:
            ValueError: there is nothing to say, or no such accent or variant.
            SynthesisError: the library failed, or used a phone that has no ARPAbet name.
        """
        voice = Voice.parse(voice) if isinstance(voice, str) else voice
        if voice.variant and voice.variant not in self._variants:
            raise ValueError(f"unknown variant {voice.variant!r}; synthesis.variants() lists those there are")
        if not any(character.isalnum() for character in text):
            raise ValueError(f"the text has nothing to say: {text!r}")
        with self._lock:
            samples, rate, events = self._run(text, voice)
        waveform = resample(torch.from_numpy(samples.astype(np.float32) / 32768), rate, self.sample_rate).clamp(-1, 1)
        phones = _phones(samples, rate, events, voice.accent)
        # Resampling rounds the length up to a whole sample.
        phones[-1] = replace(phones[-1], end=len(waveform) / self.sample_rate)
        return Speech(waveform, self.sample_rate, tuple(phones), tuple(_words(phones, rate, events, text)))

    def pronounce(self, word: str, voice: Voice | str = "en-us") -> tuple[str, ...]:
        """Return the phones of a word said by itself, without silence, for lexicons.

        A sentence may say it otherwise ("the", "to", "water" before a vowel): where the audio is at hand, take
        `Speech.phones`.
        """
        return tuple(phone.label for phone in self.speak(word, voice).phones if phone.label != SILENCE)

    def lexicon(self, words: Iterable[str], voice: Voice | str = "en-us") -> dict[str, tuple[str, ...]]:
        """Return the phones of each word, sorted by the words."""
        return {word: self.pronounce(word, voice) for word in sorted(set(words))}

    def voices(self) -> tuple[str, ...]:
        """List the names of the natural voices of all accents, such as "en-us+f3"."""
        return tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in natural_variants())

    def ipa(self, text: str, accent: str = "en-us", *, tie: str = "^") -> str:
        """Return how a text is said, in the International Phonetic Alphabet, with its stress and its punctuation.

        Args:
            text: Plain English.
            accent: One of `ACCENTS`.
            tie: Stands between the letters of one sound, as in "a^ɪ".

        Raises:
            ValueError: no such accent.
            SynthesisError: the library failed.
        """
        name = ACCENTS[Voice(accent).accent]
        parts = _MARKS.split(text.strip())
        with self._lock, self._started(name, events=0) as (library, _):
            for index in range(0, len(parts), 2):
                parts[index] = _text_to_ipa(library, parts[index], tie) if parts[index].strip() else ""
        # Between the parts stand the marks, with the blanks around them.
        return "".join(parts).strip()

    @contextlib.contextmanager
    def _started(self, voice: str, *, events: int):
        """Load the library with a voice; yields it and its sample rate."""
        if not self._finalizer.alive:
            raise SynthesisError("this synthesiser is closed; make a new one")
        with _loaded(self._library) as library:
            rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(self._data), events | _DONT_EXIT)
            if rate <= 0:
                raise SynthesisError(f"espeak-ng did not start with its data in {self._data}")
            try:
                if library.espeak_SetVoiceByName(voice.encode()):
                    raise SynthesisError(f"espeak-ng has no voice {voice!r} in {self._data}")
                yield library, rate
            finally:
                library.espeak_Terminate()

    def _run(self, text: str, voice: Voice) -> tuple[np.ndarray, int, list[tuple[int, int, int, int, str]]]:
        chunks, events = [], []

        def collect(samples, count, queue):
            if samples and count > 0:
                chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            position = 0
            while queue[position].type:
                event = queue[position]
                name = event.id.string.decode("utf-8", "replace")
                events.append((event.type, event.sample, event.text_position, event.length, name))
                position += 1
            return 0

        callback = _CALLBACK(collect)
        name = "+".join(filter(None, (ACCENTS[voice.accent], voice.variant)))
        with self._started(name, events=_PHONEME_EVENTS) as (library, rate):
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            library.espeak_SetSynthCallback(callback)
            for parameter, value in (
                (_RATE, voice.rate),
                (_PITCH, voice.pitch),
                (_RANGE, voice.pitch_range),
                (_VOLUME, voice.volume),
            ):
                library.espeak_SetParameter(parameter, value, 0)
            encoded = text.encode() + b"\0"
            status = library.espeak_Synth(
                encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, _UTF8 | _END_PAUSE, None, None
            )
            if status:
                raise SynthesisError(f"espeak-ng failed with status {status} on {text!r}")
        if not chunks:
            raise SynthesisError(f"espeak-ng said nothing for {text!r}")
        return np.concatenate(chunks), rate, events


# Punctuation with the blanks around it, which the phonemes do not show.
_MARKS = re.compile(r"""(\s*[;:,.!?¡¿—…"«»“”()]+\s*)""")


def _text_to_ipa(library, text: str, tie: str) -> str:
    translate = library.espeak_TextToPhonemes
    translate.restype = ctypes.c_char_p
    pointer = ctypes.c_char_p(text.encode())
    clauses = []
    # The pointer moves on to the next clause, and to null behind the last one.
    while pointer.value is not None:
        clause = translate(ctypes.byref(pointer), _UTF8, _IPA | _TIE | ord(tie) << 8)
        clauses.append((clause or b"").decode("utf-8", "replace").strip())
    return " ".join(filter(None, clauses))


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@contextlib.contextmanager
def _loaded(path: str):
    library = ctypes.CDLL(path)
    try:
        yield library
    finally:
        import _ctypes

        unload = _ctypes.FreeLibrary if sys.platform == "win32" else _ctypes.dlclose
        unload(library._handle)


def _phones(samples: np.ndarray, rate: int, events: list, accent: str) -> list[Segment]:
    names = [(name.strip(_STRESS), sample) for kind, sample, _, _, name in events if kind == _PHONEME_EVENT]
    labelled: list[tuple[tuple[str, ...], int]] = [((SILENCE,), 0)]
    for index, (name, start) in enumerate(names):
        if name == _GLIDE:
            continue
        following = names[index + 1][0] if index + 1 < len(names) else ""
        labels = _labels(name, following, accent)
        if labels[0] in _STOPS and labelled[-1][0] != (SILENCE,):
            start = _closure(samples, start, max(labelled[-1][1], start - int(_LONGEST_CLOSURE * rate)))
        labelled.append((labels, min(start, len(samples))))
    _lengthen(labelled, int(_SHORTEST * rate), len(samples))
    segments: list[Segment] = []
    ends = [start for _, start in labelled[1:]] + [len(samples)]
    for (labels, start), end in zip(labelled, ends, strict=True):
        if end <= start:
            continue
        if labels == (SILENCE,) and segments and segments[-1].label == SILENCE:
            segments[-1] = Segment(SILENCE, segments[-1].start, end / rate)
            continue
        edges = np.linspace(start, end, len(labels) + 1) / rate
        segments += [Segment(label, float(edges[i]), float(edges[i + 1])) for i, label in enumerate(labels)]
    return segments


def _lengthen(labelled: list[tuple[tuple[str, ...], int]], shortest: int, end: int) -> None:
    """Give phones that the library marks only where they end, as an l behind a vowel, the end of the one before them.

    It is in place: (labels, first sample) of each phone, and the last one's end. No phone gives away more than half.
    """
    for index in range(len(labelled) - 1, 0, -1):
        labels, start = labelled[index]
        before, earlier = labelled[index - 1]
        following = labelled[index + 1][1] if index + 1 < len(labelled) else end
        if (SILENCE,) in (labels, before) or following - start >= shortest:
            continue
        labelled[index] = labels, min(start, max(following - shortest, (earlier + following) // 2))


def _labels(name: str, following: str, accent: str) -> tuple[str, ...]:
    if name.startswith("_"):
        return (SILENCE,)
    labels = _ACCENT_MNEMONICS.get(accent, {}).get(name) or _MNEMONICS.get(name)
    if labels is None:
        raise SynthesisError(f"espeak-ng's phone {name!r} of the accent {accent} has no name in the phone set")
    labels = tuple(labels.split())
    # espeak-ng says the r of "near" once: within the vowel, or after it where another vowel follows.
    if len(labels) == 2 and labels[1] == "R" and following in ("r", "r-"):
        labels = labels[:1]
    return labels


def _closure(samples: np.ndarray, start: int, earliest: int) -> int:
    """Return where the silence right before a stop's release begins: the library marks only the release."""
    loud = np.flatnonzero(np.abs(samples[earliest:start].astype(np.int32)) > 2)
    return earliest + int(loud[-1]) + 1 if len(loud) else earliest


def _words(phones: list[Segment], rate: int, events: list, text: str) -> list[Segment]:
    marks = [event for event in events if event[0] == _WORD_EVENT]
    starts = [sample / rate for _, sample, _, _, _ in marks]
    words = []
    for index, (_, _, position, length, _) in enumerate(marks):
        # A stop's closure and the mark of its word may be a few samples apart; its middle is clear of both.
        end = starts[index + 1] if index + 1 < len(starts) else float("inf")
        inside = [
            phone for phone in phones if phone.label != SILENCE and starts[index] <= (phone.start + phone.end) / 2 < end
        ]
        if inside:
            words.append(Segment(text[position - 1 : position - 1 + length], inside[0].start, inside[-1].end))
    return words


@lru_cache(maxsize=1)
def _wheel():
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "speech synthesis needs espeak-ng's library; from a clone: pip install '.[synthesis]'"
        ) from error
    return espeakng_loader


def _data_folder() -> Path:
    return Path(_wheel().get_data_path())


def _remove_folder(folder: str, process: int) -> None:
    # A forked child inherits the object, but the folder is its parent's.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _unpickle(sample_rate: int) -> EspeakSynthesiser:
    return EspeakSynthesiser(sample_rate=sample_rate)


# Measured on one sentence: hardly voiced, clipped by the library itself, or drowned in an effect.
_UNNATURAL = frozenset(
    "Demonic Storm UniRobot anikaRobot announcer caleb croak ed grandpa iven klatt klatt2 robosoft robosoft2 robosoft3 "
    "robosoft4 robosoft5 robosoft6 robosoft7 robosoft8 whisper whisperf".split()
)
