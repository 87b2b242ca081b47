"""Natural speech with phone times, by Kokoro-82M (Apache-2.0): 54 voices and any blend of them.

>>> from wavcube_plugins.synthetic.kokoro import KokoroSynthesiser
>>> kokoro = KokoroSynthesiser("models/kokoro")
>>> speech = kokoro.speak("A dog barked.", "af_heart")
>>> kokoro.speak("A dog barked.", "af_heart:0.6+af_sky:0.4").phones[1].label
'AH'

The weights are an ONNX graph, a file for each voice and the table of its letters; the first letter of a voice's name is
its accent (a American, b British, others foreign), the second its sex. espeak-ng writes the text as phonemes.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavcube_plugins.audio import resample
from wavcube_plugins.errors import InputError
from wavcube_plugins.synthetic.espeak import EspeakSynthesiser
from wavcube_plugins.synthetic.speech import SILENCE, Segment, Speech, SynthesisError

# The environment variable that names a folder of weights, for tests and for commands without --voices.
FOLDER_VARIABLE = "WAVCUBE_KOKORO"
NEEDED = (
    "Kokoro needs its weights: name a folder with model.onnx, vocab.json and voices/*.bin, or a repository on the "
    "Hugging Face hub such as onnx-community/Kokoro-82M-v1.0-ONNX, which is then downloaded"
)
_HUB_FILES = ("onnx/model_quantized.onnx", "tokenizer.json", "voices/*.bin")

_RATE, _FRAME, _STYLE = 24000, 600, 256
# Tokens of one run of the model, without the two at its ends, and of one row of a voice's table.
_LONGEST = 505
# The model's durations lag behind its audio by this many seconds: a log-mel probe trained on one corrects the other.
_LEAD = 0.055
_PAUSES = frozenset(';:,.!?—…"()“” ')
_STRESSES, _LENGTH = "ˈˌ", "ː"

# espeak-ng's IPA as Kokoro's letters, in this order, longest first.
_LETTERS = (
    *(("ʔˌn\u0329", "ʔn"), ("ʔn\u0329", "ʔn"), ("a^ɪ", "I"), ("a^ʊ", "W"), ("d^ʒ", "ʤ"), ("e^ɪ", "A"), ("t^ʃ", "ʧ")),
    *(("ɔ^ɪ", "Y"), ("ə^l", "ᵊl"), ("ʲo", "jo"), ("ʲə", "jə"), ("e", "A"), ("ʲ", ""), ("ɚ", "əɹ"), ("r", "ɹ")),
    *(("x", "k"), ("ç", "k"), ("ɐ", "ə"), ("ɬ", "l"), ("\u0303", "")),
)
_BRITISH = (("e^ə", "ɛː"), ("iə", "ɪə"), ("ə^ʊ", "Q"))
_AMERICAN = (("o^ʊ", "O"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɪə", "iə"), ("ː", ""))
_LAST = (("o", "ɔ"), ("ɾ", "T"), ("ʔ", "t"), ("^", ""))

# Kokoro's letters as ARPAbet.
ARPABET = {
    **{letter: letter.upper() for letter in "bdfklmnpstvwz"},
    **{"ɡ": "G", "h": "HH", "ɹ": "R", "ŋ": "NG", "θ": "TH", "ð": "DH", "ʃ": "SH", "ʒ": "ZH", "ʧ": "CH", "ʤ": "JH"},
    **{"j": "Y", "T": "T", "ə": "AH", "ʌ": "AH", "ᵊ": "AH", "ɪ": "IH", "ᵻ": "IH", "i": "IY", "ɛ": "EH", "æ": "AE"},
    **{"a": "AE", "ɑ": "AA", "ɒ": "AA", "ɔ": "AO", "ʊ": "UH", "u": "UW", "ɜ": "ER", "A": "EY", "I": "AY", "O": "OW"},
    **{"Q": "OW", "W": "AW", "Y": "OY"},
}


@dataclass(frozen=True)
class KokoroVoice:
    """Who speaks, and how fast.

    Args:
        blend: Names of voices and their shares; one name alone is a voice as it comes.
        speed: 0.5 … 2.
    """

    blend: tuple[tuple[str, float], ...]
    speed: float = 1.0

    def __post_init__(self):
        if not self.blend or not all(share > 0 for _, share in self.blend):
            raise InputError(f"a voice is a blend of at least one voice with positive shares, got {self.blend}")
        if not 0.5 <= self.speed <= 2:
            raise InputError(f"the speed of a voice must lie in 0.5 … 2, got {self.speed}")

    @classmethod
    def parse(cls, name: str) -> KokoroVoice:
        """Build a voice from text such as "af_heart", "af_heart:0.6+af_sky:0.4" or "af_heart@1.2", 1.2 times as fast.

        Raises:
            InputError: the text is none of these.
        """
        recipe, _, speed = name.partition("@")
        try:
            parts = [part.partition(":") for part in recipe.split("+")]
            return cls(tuple((voice, float(share or 1)) for voice, _, share in parts), float(speed or 1))
        except ValueError as error:
            raise InputError(f"not a voice of Kokoro: {name!r}; write af_heart, or af_heart:0.6+af_sky:0.4") from error

    @property
    def british(self) -> bool:
        """Whether the first voice has a British accent."""
        return self.blend[0][0].startswith("b")


class KokoroSynthesiser:
    """Kokoro behind the interface of `synthetic.speech.Engine`.

    Args:
        source: A folder of weights, a repository on the Hugging Face hub, or None for the folder that the environment
            variable WAVCUBE_KOKORO names. A repository is downloaded unless HF_HUB_OFFLINE is set.
        sample_rate: Of the waveforms, in Hz. The model's own rate is 24 kHz; others are resampled.
        threads: Of the model.

    Raises:
        InputError: no weights there; the message says what is needed.
        ImportError: onnxruntime or espeak-ng's library is missing; the message names the command that installs them.
    """

    def __init__(self, source: str | os.PathLike | None = None, *, sample_rate: int = 16000, threads: int = 1):
        source = source or os.environ.get(FOLDER_VARIABLE)
        if not source:
            raise InputError(NEEDED)
        self.sample_rate, self._source, self._threads = sample_rate, source, threads
        self.folder = _find(source)
        self._espeak = EspeakSynthesiser()
        self._session, self._letters = _open_model(self.folder, threads), _read_letters(self.folder)
        inputs = [item.name for item in self._session.get_inputs()]
        self._tokens_name = next((name for name in ("tokens", "input_ids") if name in inputs), inputs[0])

    def close(self) -> None:
        """Remove what the engine keeps on disk; it also goes when the object does."""
        self._espeak.close()

    def __reduce__(self):
        return _unpickle, (self._source, self.sample_rate, self._threads)

    @cached_property
    def _styles(self) -> dict[str, np.ndarray]:
        paths = sorted((self.folder / "voices").glob("*.bin"))
        return {path.stem: np.fromfile(path, np.float32).reshape(-1, _STYLE) for path in paths}

    def voices(self) -> tuple[str, ...]:
        """List the voices that come with the weights."""
        return tuple(self._styles)

    def speak(self, text: str, voice: KokoroVoice | str) -> Speech:
        """Say a text.

        Args:
            text: Plain English; what is too long for the model is said in several pieces.
            voice: A `KokoroVoice`, or one as text.

        Raises:
            InputError: there is nothing to say, or no such voice.
            SynthesisError: the model said a letter that the phone set has no name for.
        """
        voice = KokoroVoice.parse(voice) if isinstance(voice, str) else voice
        if not any(character.isalnum() for character in text):
            raise InputError(f"the text has nothing to say: {text!r}")
        style = self._style(voice)
        letters = [letter for letter in self.letters(text, british=voice.british) if letter in self._letters]
        waveforms, phones, words, start = [], [], [], 0.0
        for piece in _pieces(letters, _LONGEST):
            audio, frames = self._run(piece, style, voice.speed)
            parts = _correct(_time(piece, frames), audio)
            phones += [Segment(_name(label), start + a, start + b) for label, a, b in parts]
            waveforms.append(audio)
            start += len(audio) / _RATE
        waveform = resample(torch.from_numpy(np.concatenate(waveforms)), _RATE, self.sample_rate)
        waveform = waveform * min(1.0, 0.98 / max(float(waveform.abs().max()), 1e-6))
        phones = _joined(phones, len(waveform) / self.sample_rate)
        words = _words(phones, letters, text)
        return Speech(waveform, self.sample_rate, tuple(phones), tuple(words))

    def letters(self, text: str, *, british: bool = False) -> str:
        """Return a text in Kokoro's letters: IPA with one letter for each diphthong and affricate."""
        ipa = self._espeak.ipa(text, "en-gb" if british else "en-us")
        for old, new in _LETTERS:
            ipa = ipa.replace(old, new)
        # A syllabic consonant gets a short vowel.
        ipa = re.sub("(\\S)\u0329", r"ᵊ\1", ipa).replace("\u0329", "")
        for old, new in (*(_BRITISH if british else _AMERICAN), *_LAST):
            ipa = ipa.replace(old, new)
        return ipa

    def _style(self, voice: KokoroVoice) -> np.ndarray:
        unknown = [name for name, _ in voice.blend if name not in self._styles]
        if unknown:
            raise InputError(f"Kokoro has no voice {unknown[0]!r}; {self.folder} has {', '.join(self._styles)}")
        total = sum(share for _, share in voice.blend)
        return np.sum([share / total * self._styles[name] for name, share in voice.blend], axis=0)

    def _run(self, letters: Sequence[str], style: np.ndarray, speed: float) -> tuple[np.ndarray, np.ndarray]:
        """Return audio (T,) at 24 kHz, and for each letter and the two ends how many frames of 25 ms it lasts."""
        tokens = [0, *(self._letters[letter] for letter in letters), 0]
        row = style[min(len(letters), len(style)) - 1]
        outputs: Any = self._session.run(
            None,
            {
                self._tokens_name: np.array([tokens], np.int64),
                "style": row[None].astype(np.float32),
                "speed": np.array([speed], np.float32),
            },
        )
        audio, frames = (np.ravel(output) for output in outputs)
        if len(frames) != len(tokens):
            raise SynthesisError(f"the model gave {len(frames)} durations for {len(tokens)} tokens")
        return audio.astype(np.float32), frames.astype(float)


def _unpickle(source, sample_rate: int, threads: int) -> KokoroSynthesiser:
    return KokoroSynthesiser(source, sample_rate=sample_rate, threads=threads)


# The weights.


def _find(source: str | os.PathLike) -> Path:
    """Return the folder of weights that a path or a hub name stands for."""
    folder = Path(source).expanduser()
    if not folder.exists():
        if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
            raise InputError(f"{source}: no such folder. {NEEDED}")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(source), allow_patterns=list(_HUB_FILES)))
        except Exception as error:  # the hub's client fails in ways that nothing lists
            raise InputError(f"{source}: cannot be had from the Hugging Face hub ({error}). {NEEDED}") from error
    if _model_path(folder) is None or not any((folder / "voices").glob("*.bin")):
        raise InputError(f"{folder}: has no {'voices' if _model_path(folder) else 'model.onnx'}. {NEEDED}")
    return folder


def _model_path(folder: Path) -> Path | None:
    return next((folder / name for name in ("model.onnx", _HUB_FILES[0]) if (folder / name).is_file()), None)


def _open_model(folder: Path, threads: int):
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("Kokoro needs onnxruntime; from a clone: pip install '.[natural]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    path = _model_path(folder)
    assert path is not None  # `_find` has seen it
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if len(session.get_outputs()) < 2:
        model = _with_durations(path)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session


def _with_durations(path: Path) -> bytes:
    """Return a published graph with one more output: the rounded, clipped durations that it computes inside."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError("Kokoro's phone times need onnx; from a clone: pip install '.[natural]'") from error
    model = onnx.load(path)
    rounded = {node.output[0] for node in model.graph.node if node.op_type == "Round"}
    clipped = [node for node in model.graph.node if node.op_type == "Clip" and rounded.intersection(node.input)]
    if len(clipped) != 1:
        raise InputError(f"{path}: not a graph of Kokoro, whose durations are not found in it")
    output = onnx.helper.make_tensor_value_info(clipped[0].output[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(output)
    return model.SerializeToString()


def _read_letters(folder: Path) -> dict[str, int]:
    for name in ("vocab.json", "tokenizer.json"):
        path = folder / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            return content["vocab"] if "vocab" in content else content["model"]["vocab"]
    raise InputError(f"{folder}: has no vocab.json. {NEEDED}")


# Times.


def _pieces(letters: Sequence[str], longest: int) -> Iterator[list[str]]:
    """Cut letters where a sentence, a clause or a word ends, into pieces that the model can take."""
    rest = list(letters)
    while len(rest) > longest:
        ends = [[i for i in range(longest // 2, longest) if rest[i] in marks] for marks in (".!?", ",;:—", " ")]
        cut = next((found[-1] + 1 for found in ends if found), longest)
        yield rest[:cut]
        rest = rest[cut:]
    yield rest


def _time(letters: Sequence[str], frames: np.ndarray) -> list[tuple[str, float, float]]:
    """Return label, start and end in seconds of each phone and pause, from how many frames each letter lasts.

    Stress belongs to the phone behind it, a sign of length to the one before, a short blank half to either neighbour.
    """
    parts: list[list] = [[SILENCE, float(frames[0])]]
    carried = 0.0
    for letter, count in zip(letters, map(float, frames[1:-1]), strict=True):
        if letter in _STRESSES:
            carried += count
        elif letter == _LENGTH:
            parts[-1][1] += count
        elif letter == " " and count <= 2 and parts[-1][0] != SILENCE:
            parts[-1][1] += count / 2
            carried += count / 2
        else:
            label = SILENCE if letter in _PAUSES else letter
            if label == SILENCE == parts[-1][0]:
                parts[-1][1] += count + carried
            else:
                parts.append([label, count + carried])
            carried = 0.0
    tail = float(frames[-1]) + carried
    if parts[-1][0] == SILENCE:
        parts[-1][1] += tail
    else:
        parts.append([SILENCE, tail])
    edges = np.cumsum([0.0, *(count for _, count in parts)]) * _FRAME / _RATE
    return [(label, float(edges[i]), float(edges[i + 1])) for i, (label, _) in enumerate(parts)]


def _correct(parts: list[tuple[str, float, float]], audio: np.ndarray) -> list[tuple[str, float, float]]:
    """Take the model's lag off, and end the phone before each pause where its energy falls by 40 dB."""
    moved = [[label, max(0.0, start - _LEAD), max(0.0, end - _LEAD)] for label, start, end in parts]
    moved[-1][2] = len(audio) / _RATE
    hop = _RATE // 200
    energy = np.sqrt((audio[: len(audio) // hop * hop].reshape(-1, hop) ** 2).mean(1))
    for phone, pause in itertools.pairwise(moved):
        if pause[0] != SILENCE or phone[0] == SILENCE:
            continue
        first, last = int(phone[1] * 200), min(int(phone[2] * 200) + 1, len(energy))
        loud = np.flatnonzero(energy[first:last] > 0.01 * energy.max())
        if len(loud):
            end = max((first + loud[-1] + 1) / 200, phone[1] + 0.03)
            phone[2] = pause[1] = min(phone[2], end)
    return [(label, start, end) for label, start, end in moved]


def _name(letter: str) -> str:
    if letter == SILENCE:
        return SILENCE
    if letter not in ARPABET:
        raise SynthesisError(f"Kokoro's letter {letter!r} has no name in the phone set")
    return ARPABET[letter]


def _joined(phones: list[Segment], end: float) -> list[Segment]:
    """Return phones without a gap from 0 to the end: pauses where two pieces meet are one, what lasts nothing goes."""
    joined: list[Segment] = []
    for phone in phones:
        if phone.end <= phone.start:
            continue
        if joined and phone.label == SILENCE == joined[-1].label:
            joined[-1] = Segment(SILENCE, joined[-1].start, phone.end)
        else:
            joined.append(phone)
    joined[-1] = Segment(joined[-1].label, joined[-1].start, end)
    return joined


def _words(phones: Sequence[Segment], letters: Sequence[str], text: str) -> list[Segment]:
    """Return the words of a text with their times; none where they are not as many as espeak-ng's."""
    groups = [[c for c in group if c in ARPABET] for group in re.split(r"[\s—…-]+", "".join(letters))]
    groups = [group for group in groups if group]
    words = re.findall(r"[\w'’]+", text)
    spoken = [phone for phone in phones if phone.label != SILENCE]
    if len(words) != len(groups) or sum(map(len, groups)) != len(spoken):
        return []
    segments, first = [], 0
    for word, group in zip(words, groups, strict=True):
        last = first + len(group) - 1
        segments.append(Segment(word, spoken[first].start, spoken[last].end))
        first = last + 1
    return segments
