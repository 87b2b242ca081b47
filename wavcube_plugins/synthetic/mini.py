"""Small sets of speech for every task, synthesised on the spot with exact labels, so that each recipe runs offline.

>>> from wavcube_plugins.synthetic.mini import make_mini, read_mini
>>> make_mini("mini/read", "read", {"train": 60, "valid": 10, "test": 20})
>>> read_mini("mini/read", "train")[0]["text"]
'her brother found a red coat near the river'

espeak-ng, or Kokoro on request, says sentences of a small vocabulary, with voices that differ in accent, throat,
rate and pitch. A record has

    id, path (relative to the folder), duration (s), speaker, gender ("f" or "m"), text (small letters, no punctuation),
    phones [[label, start, end], ...] and words [[word, start, end], ...], in seconds

and what its task adds:

    read          sentences by the same speakers in all splits
    verification  as read, but nobody of one split speaks in another
    keywords      one word; keyword: one of KEYWORDS
    commands      intent {"action", "object", "location"} and slots [[name, words of the text], ...]
    emotion       emotion: one of EMOTIONS; session 1 … 5, two speakers each
    mixture       two talkers; sources [path, path], speakers, texts, turns [[speaker, start, end], ...]; its phones and
                  words are the first talker's
    noisy         speech in noise; clean (path), snr (dB)

An utterance depends on the seed, the task, the split and its number alone, so larger sets begin with the smaller ones.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from wavcube_plugins.audio import resample
from wavcube_plugins.files import atomic_path
from wavcube_plugins.synthetic.espeak import Voice
from wavcube_plugins.synthetic.kokoro import KokoroSynthesiser, KokoroVoice
from wavcube_plugins.synthetic.speech import SynthesisError, open_engine

SAMPLE_RATE = 16000
TASKS = ("read", "verification", "keywords", "commands", "emotion", "mixture", "noisy")
SPLITS = ("train", "valid", "test")
SIZES = {"train": 200, "valid": 20, "test": 40}
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_", "_silence_")
EMOTIONS = ("neu", "hap", "ang", "sad")
SESSIONS = 5

# Speakers of each split, unless the caller says otherwise.
_SPEAKERS = 12
# Nobody is in two splits: these follow each other.
_NEW_SPEAKERS = {"valid": 6, "test": 8}
_PEAK = 0.5
_SETTINGS = "minidata.json"

_FEMALE = ("f1", "f2", "f3", "f4", "f5", "Annie", "anika", "steph", "linda")
_MALE = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "adam")
_ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-us-nyc", "en-gb-scotland", "en-029")


@dataclass(frozen=True)
class MiniSpeaker:
    """One of the voices of a set.

    Args:
        name: Unique in the set.
        gender: "f" or "m".
        voice: For espeak-ng or Kokoro.
        speed: Factor by which the speech is played faster, which changes the length of the throat.
    """

    name: str
    gender: str
    voice: Voice | KokoroVoice
    speed: float


def make_mini(
    folder: str | Path,
    task: str,
    sizes: Mapping[str, int] | None = None,
    *,
    speakers: int | None = None,
    seed: int = 0,
    progress: bool = True,
    engine: str = "espeak",
    voices: str | None = None,
) -> None:
    """Make a set, or what is missing of it: FOLDER/train.jsonl, FOLDER/train/<id>.wav and so on for valid and test.

    A split that is there grows to the number that is asked for. One that is larger is cut: its .jsonl lists that many,
    and the audio of the others stays.

    Args:
        folder: Where it goes.
        task: One of `TASKS`.
        sizes: Utterances of each split, 200, 20 and 40 if not given; splits that are left out are not made.
        speakers: How many, 12 if not given; `emotion` always has ten.
        seed: Another one gives another set with other speakers.
        progress: Show a progress bar.
        engine: Who speaks: `espeak`, or `kokoro` for natural voices, which have no emotions.
        voices: Kokoro's weights: a folder, or a name on the Hugging Face hub.

    Raises:
        ValueError: no such task, split or engine, a number below 1, or the folder holds another set.
        ImportError: a package of the engine is missing; the message names the command that installs it.
    """
    folder = Path(folder)
    sizes = dict(SIZES if sizes is None else sizes)
    if task not in TASKS:
        raise ValueError(f"unknown mini task {task!r}; choose one of {', '.join(TASKS)}")
    for split, count in sizes.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
        if count < 1:
            raise ValueError(f"the split {split} needs at least one utterance, got {count}")
    speakers = _SPEAKERS if speakers is None else speakers
    if speakers < 2:
        raise ValueError(f"a set needs at least two speakers, got {speakers}")
    if task == "emotion" and engine != "espeak":
        raise ValueError(f"only espeak-ng speaks with emotions; {engine} has none")
    settings = {"task": task, "speakers": speakers, "seed": seed}
    if engine != "espeak":
        settings["engine"] = engine
    _claim(folder, settings)
    made = {split: read_mini(folder, split) if (folder / f"{split}.jsonl").is_file() else [] for split in sizes}
    todo = {split: count for split, count in sizes.items() if len(made[split]) != count}
    if not todo:
        return
    total = sum(max(0, count - len(made[split])) for split, count in todo.items())
    synthesiser = open_engine(engine, voices=voices, sample_rate=SAMPLE_RATE)
    with (
        closing(synthesiser),
        tqdm(total=total, desc=f"mini {task}", unit="utt", disable=not progress) as bar,
    ):
        studio = _Studio(synthesiser, task, speakers, seed)
        for split, count in todo.items():
            (folder / split).mkdir(parents=True, exist_ok=True)
            records = made[split][:count]
            for index in range(len(records), count):
                records.append(studio.record(folder, split, index))
                bar.update()
            with atomic_path(folder / f"{split}.jsonl") as path:
                path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read_mini(folder: str | Path, split: str) -> list[dict]:
    """Return the records of a split.

    Raises:
        FileNotFoundError: the split has not been made.
    """
    path = Path(folder) / f"{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; make it with wavcube_plugins.synthetic.mini.make_mini")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _claim(folder: Path, settings: dict) -> None:
    path = folder / _SETTINGS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != settings:
            raise ValueError(f"{folder} holds another set of speech ({found}); take a new folder or remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings) + "\n", encoding="utf-8")


def _generator(*parts: object) -> random.Random:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def make_speakers(count: int, seed: int, group: str, natural: Sequence[str] = ()) -> list[MiniSpeaker]:
    """Return speakers, women and men in turn; the first ones are the same however many are asked for.

    Args:
        count: How many.
        seed: Another one gives others.
        group: Of the speakers; no two groups have the same one.
        natural: Names of Kokoro's voices, of which each speaker is a blend; none for espeak-ng's.
    """
    speakers = []
    if natural:
        return [_natural_speaker(index, seed, group, natural) for index in range(count)]
    for index in range(count):
        generator = _generator(seed, "speaker", group, index)
        gender = "fm"[index % 2]
        names = _FEMALE if gender == "f" else _MALE
        voice = Voice(
            generator.choice(_ACCENTS),
            names[index // 2 % len(names)],
            rate=generator.randint(150, 200),
            pitch=generator.randint(35, 70),
            pitch_range=generator.randint(35, 75),
        )
        speakers.append(MiniSpeaker(f"{group}{index:02d}", gender, voice, generator.randint(90, 110) / 100))
    return speakers


def _natural_speaker(index: int, seed: int, group: str, voices: Sequence[str]) -> MiniSpeaker:
    generator = _generator(seed, "natural speaker", group, index)
    gender = "fm"[index % 2]
    # English voices; the second letter of a name is its sex.
    names = [name for name in voices if name[0] in "ab" and name[1:2] == gender]
    if not names:
        raise SynthesisError(f"Kokoro has no English voice for {'women' if gender == 'f' else 'men'} among these")
    first, second = generator.choice(names), generator.choice(names)
    share = generator.randint(50, 90) / 100
    voice = KokoroVoice(((first, share), (second, 1 - share)), generator.randint(90, 110) / 100)
    return MiniSpeaker(f"{group}{index:02d}", gender, voice, 1.0)


class _Studio:
    def __init__(self, synthesiser: Any, task: str, speakers: int, seed: int):
        self.synthesiser, self.task, self.seed = synthesiser, task, seed
        self.counts: dict[str, int] = {}  # phones of words
        natural = synthesiser.voices() if isinstance(synthesiser, KokoroSynthesiser) else ()
        self.speakers: dict[str, list[MiniSpeaker]] = {
            split: make_speakers(speakers, seed, "spk", natural) for split in SPLITS
        }
        if task == "verification":
            self.speakers |= {
                split: make_speakers(count, seed, f"new{split}", natural) for split, count in _NEW_SPEAKERS.items()
            }
        if task == "emotion":
            cast = make_speakers(2 * SESSIONS, seed, "Ses")
            cast = [replace(one, name=f"Ses{index // 2 + 1:02d}{one.gender.upper()}") for index, one in enumerate(cast)]
            self.speakers = dict.fromkeys(SPLITS, cast)

    def record(self, folder: Path, split: str, index: int) -> dict:
        name = f"{self.task}-{split}-{index:05d}"
        generator = _generator(self.seed, name)
        cast = self.speakers[split]
        speaker = cast[index % len(cast)]
        make = getattr(self, f"_{self.task}", self._plain)
        audio, labels = make(name, split, index, speaker, generator)
        paths = {key: f"{split}/{name}{key}.wav" for key in audio}
        for key, waveform in audio.items():
            with atomic_path(folder / paths[key]) as path:
                soundfile.write(path, waveform, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        if self.task == "mixture":
            labels["sources"] = [paths["_1"], paths["_2"]]
        if self.task == "noisy":
            labels["clean"] = paths["_clean"]
        duration = len(audio[""]) / SAMPLE_RATE
        return {
            "id": name, "path": paths[""], "duration": duration, "speaker": speaker.name, "gender": speaker.gender
        } | labels  # fmt: skip

    def _say(self, text: str, speaker: MiniSpeaker, voice: Voice | None = None) -> tuple[np.ndarray, dict]:
        """Return samples (T,), peak-normalised, and the labels of a text."""
        speech = self.synthesiser.speak(text, voice or speaker.voice)
        if not speech.words:
            raise SynthesisError(f"the times of the words are unknown in {text!r}")
        samples = resample(speech.waveform, round(SAMPLE_RATE * speaker.speed), SAMPLE_RATE).numpy()
        samples = samples * (_PEAK / max(float(np.abs(samples).max()), 1e-9))
        end = len(samples) / SAMPLE_RATE

        def scaled(segments) -> list[list]:
            return [
                [one.label, round(one.start / speaker.speed, 5), round(min(one.end / speaker.speed, end), 5)]
                for one in segments
            ]

        phones = scaled(speech.phones)
        words = [(label.lower().strip(".,?!"), start, stop) for label, start, stop in scaled(speech.words)]
        return samples, {"text": text, "phones": phones, "words": self._separated(words, phones, text.split())}

    def _separated(self, words: list[tuple], phones: list[list], wanted: list[str]) -> list[list]:
        """Return every word by itself: espeak-ng marks a pair such as "in the" once, under the first one's name."""
        separated: list[list] = []
        position = 0
        for index, (_, start, end) in enumerate(words):
            stop = position + 1
            following = words[index + 1][0] if index + 1 < len(words) else None
            while stop < len(wanted) and wanted[stop] != following:
                stop += 1
            group, position = wanted[position:stop], stop
            inside = [phone for phone in phones if start <= (phone[1] + phone[2]) / 2 < end]
            # From the back, since what is marked once is a short word before its article.
            edges = [end]
            for left, word in zip(range(len(group) - 1, 0, -1), reversed(group[1:]), strict=True):
                taken = min(self._count(word), len(inside) - left)
                edges.append(inside[-taken][1])
                inside = inside[:-taken]
            edges = [start, *reversed(edges)]
            separated += [[word, edges[place], edges[place + 1]] for place, word in enumerate(group)]
        return separated

    def _count(self, word: str) -> int:
        if word not in self.counts:
            self.counts[word] = len(self.synthesiser.pronounce(word))
        return self.counts[word]

    def _say_one(self, draw, speaker: MiniSpeaker, generator: random.Random) -> tuple[np.ndarray, dict]:
        # A few accents have a sound in a few words that the phone set does not name.
        for _ in range(50):
            try:
                return self._say(draw(generator), speaker)
            except SynthesisError:
                continue
        raise SynthesisError(f"{speaker.name} could say none of fifty sentences")

    def _plain(self, name, split, index, speaker, generator):
        samples, labels = self._say_one(draw_sentence, speaker, generator)
        return {"": samples}, labels

    def _keywords(self, name, split, index, speaker, generator):
        # Speakers change with every utterance, words with every round, so that each says each.
        keyword = KEYWORDS[(index + index // len(self.speakers[split])) % len(KEYWORDS)]
        if keyword == "_silence_":
            noise = np.random.default_rng(generator.getrandbits(32)).standard_normal(SAMPLE_RATE)
            level = 10 ** generator.uniform(-3.5, -2.0)
            silence = {"text": "", "phones": [["SIL", 0.0, 1.0]], "words": [], "keyword": keyword}
            return {"": level * noise}, silence
        draw = (lambda one: one.choice(_OTHER_WORDS)) if keyword == "_unknown_" else (lambda one: keyword)
        samples, labels = self._say_one(draw, speaker, generator)
        return {"": samples}, labels | {"keyword": keyword}

    def _commands(self, name, split, index, speaker, generator):
        drawn: dict = {}

        def draw(one: random.Random) -> str:
            text, labels = draw_command(one)
            drawn.update(labels)
            return text

        samples, labels = self._say_one(draw, speaker, generator)
        return {"": samples}, labels | drawn

    def _emotion(self, name, split, index, speaker, generator):
        emotion = EMOTIONS[index // len(self.speakers[split]) % len(EMOTIONS)]
        factor, pitch, melody, level = _EMOTION_VOICES[emotion]
        voice = replace(
            speaker.voice,
            rate=round(speaker.voice.rate * factor * generator.uniform(0.95, 1.05)),
            pitch=min(max(speaker.voice.pitch + pitch + generator.randint(-4, 4), 0), 99),
            pitch_range=melody + generator.randint(-5, 5),
        )
        spoken = replace(speaker, voice=voice)
        samples, labels = self._say_one(draw_sentence, spoken, generator)
        session = index % len(self.speakers[split]) // 2 + 1
        return {"": samples * level * generator.uniform(0.8, 1.25)}, labels | {"emotion": emotion, "session": session}

    def _mixture(self, name, split, index, speaker, generator):
        other = generator.choice([one for one in self.speakers[split] if one != speaker])
        first, labels = self._say_one(draw_sentence, speaker, generator)
        second, others = self._say_one(draw_sentence, other, generator)
        # Louder and softer by up to 2.5 dB, the second one up to a second late.
        second = second * (_rms(first) / _rms(second) * 10 ** (generator.uniform(-2.5, 2.5) / 20))
        late = int(generator.uniform(0, 1) * SAMPLE_RATE)
        total = max(len(first), late + len(second))
        sources = [np.pad(first, (0, total - len(first))), np.pad(second, (late, total - late - len(second)))]
        scale = _PEAK / np.abs(sum(sources)).max()
        turns = [
            [speaker.name, labels["words"][0][1], labels["words"][-1][2]],
            [other.name, others["words"][0][1] + late / SAMPLE_RATE, others["words"][-1][2] + late / SAMPLE_RATE],
        ]
        labels |= {
            "speakers": [speaker.name, other.name], "texts": [labels["text"], others["text"]],
            "turns": [[who, round(start, 5), round(end, 5)] for who, start, end in turns],
        }  # fmt: skip
        first, second = (scale * source for source in sources)
        return {"": first + second, "_1": first, "_2": second}, labels

    def _noisy(self, name, split, index, speaker, generator):
        clean, labels = self._say_one(draw_sentence, speaker, generator)
        snr = round(generator.uniform(0, 15), 2)
        kind = generator.choice(("white", "pink", "brown", "babble"))
        if kind == "babble":
            talkers = [
                self._say_one(draw_sentence, generator.choice(self.speakers[split]), generator)[0] for _ in range(4)
            ]
            noise = np.sum([np.resize(talker, len(clean)) for talker in talkers], axis=0)
        else:
            noise = _coloured(len(clean), {"white": 0, "pink": 1, "brown": 2}[kind], generator.getrandbits(32))
        noisy = clean + noise * (_rms(clean) / _rms(noise) * 10 ** (-snr / 20))
        scale = _PEAK / np.abs(noisy).max()
        return {"": scale * noisy, "_clean": scale * clean}, labels | {"snr": snr}


# Rate, pitch, melody and level of each emotion, the first two relative to the speaker's own.
_EMOTION_VOICES = {
    "neu": (1.0, 0, 50, 0.5),
    "hap": (1.12, 16, 90, 0.7),
    "ang": (1.28, -4, 68, 1.0),
    "sad": (0.74, -12, 12, 0.22),
}


def _rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(waveform**2))) + 1e-12


def _coloured(length: int, exponent: int, seed: int) -> np.ndarray:
    """Return noise (T,) whose power falls with the frequency to an exponent."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(length))
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE).clip(min=40)
    return np.fft.irfft(spectrum * frequencies ** (-exponent / 2), length)


# What is said: about 130 words, so that a small model can learn them from minutes of speech.

_WHO = (
    "the teacher|my sister|her brother|the farmer|a young girl|the old man|our neighbour|the doctor|his mother|"
    "the baker|your friend|a tall boy|the captain|my father|the singer"
).split("|")
_DID = (
    "found|carried|painted|washed|dropped|wanted|opened|sold|borrowed|cleaned|forgot|watched|loved|kept|moved|fixed"
).split("|")
_COLOURS = "red|blue|green|yellow|black|white|brown|purple".split("|")
_SIZES = "small|large|heavy|broken|new|old|warm|wooden".split("|")
_THINGS = "coat|boat|basket|window|chair|cup|letter|bicycle|lamp|table|box|kettle|drum|ladder|shoe|book".split("|")
_WHERE = (
    "near the river|in the garden|behind the house|under the bridge|at the station|in the kitchen|by the lake|"
    "on the hill|beside the church|at the market"
).split("|")
_WHEN = "this morning|last night|on monday|on friday|after lunch|before school|every evening|at noon".split("|")
_OTHER_WORDS = "house|tree|bird|happy|seven|three|marvin|sheila|wow|dog|cat|bed|nine|zero|river|paper".split("|")

_ROOMS = "kitchen|bedroom|bathroom|hall".split("|")
_DEVICES = {"lights": "lights", "lamp": "lamp", "heating": "heat", "music": "music", "fan": "fan"}
_NUMBERS = "ten|twelve|fifteen|eighteen|twenty|thirty".split("|")
_DAYS = "monday|tuesday|friday|sunday".split("|")
_HOURS = "six|seven|eight|nine".split("|")
_GENRES = "jazz|rock|folk|opera".split("|")
_OBJECTS = "newspaper|shoes|socks|juice".split("|")


def draw_sentence(generator: random.Random) -> str:
    """Draw a sentence of 5 to 13 words."""
    thing = f"{generator.choice(('a', 'the'))} {generator.choice(_COLOURS + _SIZES)} {generator.choice(_THINGS)}"
    if thing.startswith("a old"):
        thing = thing.replace("a old", "an old", 1)
    parts = [generator.choice(_WHO), generator.choice(_DID), thing]
    if generator.random() < 0.7:
        parts.append(generator.choice(_WHERE))
    if generator.random() < 0.4:
        parts.append(generator.choice(_WHEN))
    return " ".join(parts)


def draw_command(generator: random.Random) -> tuple[str, dict]:
    """Draw a command of home automation, with its intent and slots."""

    def answer(text: str, action: str, thing: str, place: str, *slots: tuple[str, str]) -> tuple[str, dict]:
        intent = {"action": action, "object": thing, "location": place}
        return text, {"intent": intent, "slots": [list(slot) for slot in slots]}

    kind = generator.choices(("switch", "level", "set", "bring", "play", "wake"), (4, 3, 2, 2, 2, 2))[0]
    device = generator.choice(tuple(_DEVICES))
    room = generator.choice(_ROOMS)
    if kind == "switch":
        action, verb = generator.choice((("activate", "turn on"), ("deactivate", "turn off"), ("activate", "start")))
        named = generator.random() < 0.7
        where = (f" in the {room}", room, (("device", device), ("room", room))) if named else ("", "none", ())
        slots = where[2] or (("device", device),)
        return answer(f"{verb} the {device}{where[0]}", action, _DEVICES[device], where[1], *slots)
    if kind == "level":
        action = generator.choice(("increase", "decrease"))
        what = generator.choice(("heating", "volume"))
        verb = {"increase": ("turn up", "raise"), "decrease": ("turn down", "lower")}[action]
        thing = {"heating": "heat", "volume": "volume"}[what]
        text = f"{generator.choice(verb)} the {what} in the {room}"
        return answer(text, action, thing, room, ("device", what), ("room", room))
    if kind == "set":
        number = generator.choice(_NUMBERS)
        text = f"set the heating in the {room} to {number} degrees"
        return answer(text, "set", "heat", room, ("device", "heating"), ("room", room), ("number", number))
    if kind == "bring":
        thing = generator.choice(_OBJECTS)
        return answer(f"please bring me my {thing}", "bring", thing, "none", ("object", thing))
    if kind == "play":
        genre = generator.choice(_GENRES)
        return answer(f"play some {genre} in the {room}", "play", "music", room, ("genre", genre), ("room", room))
    hour, day = generator.choice(_HOURS), generator.choice(_DAYS)
    return answer(f"wake me at {hour} on {day}", "wake", "none", "none", ("time", hour), ("day", day))
