"""Makes a corpus of synthesised English speech: `python corpus.py OUT --hours 10 --workers 2`.

Two synthesisers speak: espeak-ng, which says exactly when it says which phone, and SVOX Pico (PyPI `ttspico`), whose
voices are far closer to people's but which tells no times. Training utterances are then made to sound like recordings
(rooms, noise, microphones), since a model that hears only clean synthetic speech reconstructs nothing else. With
`--engine kokoro --voices FOLDER` far more natural voices speak, with times of their phones, as they come.

OUT gets `train.jsonl`, `valid.jsonl` and `test.jsonl`, one JSON object per line:

    {"id", "path" (relative to OUT), "duration" (s), "speaker", "text", "augmentation" (names, [] for clean),
     "phones": [[label, start, end], ...] in seconds, or "pronunciation": [label, ...] without times or silence}

Pico's voices for other languages read the English texts too, and have neither. No sentence of one split is in another
split; half of the test set is by speakers who are nowhere else. Every utterance depends on the seed and its name
alone, so a run that was stopped goes on where it was, and more hours extend a corpus.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from wavcube_plugins.audio import resample
from wavcube_plugins.errors import BAD_INPUT, OK, InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.nano.natural import NaturalStudio, take_corpus
from wavcube_plugins.nano.texts import SAMPLE_RATE, draw_text, stable_seed
from wavcube_plugins.synthetic.espeak import EspeakSynthesiser, Voice, draw_voice
from wavcube_plugins.synthetic.speech import SynthesisError

# Counts for valid and test; train's comes from the hours.
COUNTS = {"valid": 60, "test": 200}
# Mean length of a training utterance, measured on 1,000; turns hours into a number of utterances.
MEAN_SECONDS = 3.4
NATURAL_MEAN_SECONDS = 4.9
SHORTEST, LONGEST = 1.5, 9.0
# The languages of Pico's voices: those that pronounce English, with the accent of espeak-ng that says it alike.
PICO_ACCENTS = {"en-US": "en-us", "en-GB": "en-gb"}
PICO_FOREIGN = ("de-DE", "es-ES", "fr-FR", "it-IT")
# The one natural variant of espeak-ng whose noise differs from call to call, which no seed prevents.
_NEVER_THE_SAME = ("Reed",)
# Pico's default of 100 clips.
_PICO_VOLUME = 40


@dataclass(frozen=True)
class Speaker:
    """One voice with one fixed setting of everything.

    Args:
        name: Unique, and the same in every corpus with the same seed and engines.
        voice: For espeak-ng a `Voice`, for Pico the language.
        speed: Factor by which the speech is played faster; below 1 makes a larger, lower person.
        rate: Pico's rate in percent, which makes up for the speed.
        pitch: Pico's pitch in percent.
    """

    name: str
    voice: Voice | str
    speed: float
    rate: int = 100
    pitch: int = 100

    @property
    def accent(self) -> str | None:
        """The accent of espeak-ng that this speaker has, or None for a foreigner."""
        return self.voice.accent if isinstance(self.voice, Voice) else PICO_ACCENTS.get(self.voice)


def has_pico() -> bool:
    """Say whether SVOX Pico can be used."""
    try:
        import ttspico  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def make_speakers(seed: int, pico: bool) -> dict[str, list[Speaker]]:
    """Return the 120 speakers of the training set and the 20 that only the test set has."""
    speakers: dict[str, list[Speaker]] = {}
    for group, count in (("train", 120), ("test", 20)):
        espeak = [_espeak_speaker(seed, group, index) for index in range(count // 2 if pico else count)]
        natural = [_pico_speaker(seed, group, index, count // 2) for index in range(count // 2 if pico else 0)]
        # Taken in turn, so that every part of a split has both.
        pairs = itertools.zip_longest(espeak, natural)
        speakers[group] = [speaker for pair in pairs for speaker in pair if speaker is not None]
    return speakers


def _espeak_speaker(seed: int, group: str, index: int) -> Speaker:
    generator = random.Random(stable_seed(seed, "espeak", group, index))
    voice = draw_voice(generator)
    while voice.variant in _NEVER_THE_SAME:
        voice = draw_voice(generator)
    return Speaker(f"espeak-{group}-{index:03d}", voice, generator.randint(92, 108) / 100)


def _pico_speaker(seed: int, group: str, index: int, count: int) -> Speaker:
    generator = random.Random(stable_seed(seed, "pico", group, index))
    # Three in four speak English, since the others' speech has no labels.
    languages = (*(tuple(PICO_ACCENTS) * 3), *PICO_FOREIGN[index // 8 % 2 :: 2])
    language = languages[index % len(languages)]
    # Evenly from the largest to the smallest throat; the step 7 has no divisor in common with the counts.
    speed = round(0.72 + 0.38 * ((index * 7) % count + generator.random()) / count, 2)
    rate = round(generator.uniform(85, 115) / speed)
    pitch = round(generator.uniform(80, 122))
    return Speaker(f"pico-{language.lower()}-{group}-{index:03d}", language, speed, rate, pitch)


class Studio:
    """Makes utterances.

    Args:
        seed: Of the corpus.
        pico: Whether to use SVOX Pico.
    """

    def __init__(self, seed: int, pico: bool):
        self.seed = seed
        self.speakers = make_speakers(seed, pico)
        self.synthesiser = EspeakSynthesiser(sample_rate=SAMPLE_RATE)

    def utterance(self, split: str, index: int) -> tuple[np.ndarray, dict]:
        """Return an utterance's samples (T,) in -1 … 1 and its line of the manifest."""
        name = f"{split}-{index:06d}"
        generator = random.Random(stable_seed(self.seed, name))
        speaker = self._speaker(generator, split, index)
        augmentation = _draw_augmentation(generator) if split == "train" else {}
        speed = speaker.speed * augmentation.get("speed", 1.0)
        text, waveform, labels = self._say_some(generator, split, speaker, speed)
        noise = np.random.default_rng(stable_seed(self.seed, name, "noise"))
        if "talker" in augmentation:
            other = generator.choice([one for one in self.speakers["train"] if one != speaker])
            waveform = _mix(waveform, self._say_some(generator, split, other, other.speed)[1], augmentation["talker"])
        waveform = augment(waveform, augmentation, noise)
        peak = 10 ** (generator.uniform(-12, -1) / 20)
        waveform = waveform * (peak / np.abs(waveform).max())
        record = {
            "id": name,
            "path": f"{split}/{name}.flac",
            "duration": len(waveform) / SAMPLE_RATE,
            "speaker": speaker.name,
            "text": text,
            "augmentation": sorted(augmentation),
            **labels,
        }
        return waveform.astype(np.float32), record

    def _speaker(self, generator: random.Random, split: str, index: int) -> Speaker:
        if split == "test" and index % 2:
            return self.speakers["test"][index // 2 % len(self.speakers["test"])]
        if split == "train":
            return self.speakers["train"][index % len(self.speakers["train"])]
        return generator.choice(self.speakers["train"])

    def _say_some(self, generator: random.Random, split: str, speaker: Speaker, speed: float):
        # A few sentences turn out too long, or have a sound in one accent that the phone set does not name.
        for _ in range(50):
            text = draw_text(generator, split)
            try:
                waveform, labels = self._say(text, speaker, speed)
            except SynthesisError:
                continue
            if SHORTEST <= len(waveform) / SAMPLE_RATE <= LONGEST:
                return text, waveform, labels
        raise SynthesisError(f"{speaker.name} said none of fifty sentences within {LONGEST:g} seconds")

    def _say(self, text: str, speaker: Speaker, speed: float) -> tuple[np.ndarray, dict]:
        """Return samples and the manifest's labels of a text."""
        speed = round(speed, 2)
        labels: dict = {}
        if isinstance(speaker.voice, Voice):
            speech = self.synthesiser.speak(text, speaker.voice)
            waveform = speech.waveform
            phones = [(phone.label, phone.start / speed, phone.end / speed) for phone in speech.phones]
        else:
            waveform = _trim(_pico(text, speaker))
            if speaker.accent:
                speech = self.synthesiser.speak(text, Voice(speaker.accent))
                labels["pronunciation"] = [phone.label for phone in speech.phones if phone.label != "SIL"]
        # Played faster by `speed`: what was `speed` kHz is now one.
        waveform = resample(waveform, round(SAMPLE_RATE * speed), SAMPLE_RATE).numpy().astype(np.float64)
        if speed < 0.95:
            waveform = _fill_band(waveform, speed, np.random.default_rng(stable_seed(text, speaker.name)))
        if isinstance(speaker.voice, Voice):
            end = len(waveform) / SAMPLE_RATE
            phones[-1] = (phones[-1][0], phones[-1][1], end)
            labels["phones"] = [(label, round(start, 5), round(min(stop, end), 5)) for label, start, stop in phones]
        return waveform, labels


def _pico(text: str, speaker: Speaker) -> torch.Tensor:
    import ttspico  # pyright: ignore[reportMissingImports]

    # A new engine each time, at 2 ms: an engine's speech depends on what it said before.
    engine = ttspico.TtsEngine(speaker.voice)
    engine.volume, engine.rate, engine.pitch = _PICO_VOLUME, speaker.rate, speaker.pitch
    samples = np.frombuffer(engine.speak(text), dtype=np.int16)
    if not len(samples):
        raise SynthesisError(f"Pico said nothing for {text!r}")
    return torch.from_numpy(samples.astype(np.float32) / 32768)


def _trim(waveform: torch.Tensor) -> torch.Tensor:
    # Pico ends with up to a second of silence.
    loud = torch.nonzero(waveform.abs() > 0.003).flatten()
    edge = int(0.12 * SAMPLE_RATE)
    return waveform[max(int(loud[0]) - edge, 0) : int(loud[-1]) + edge] if len(loud) else waveform


# Making synthetic speech sound like a recording. Everything is float64 at SAMPLE_RATE.

_FFT, _HOP = 512, 128
_FREQUENCIES = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)


def _draw_augmentation(generator: random.Random) -> dict:
    """Draw what happens to a training utterance; a quarter stays clean, which is the empty dictionary."""
    if generator.random() < 0.25:
        return {}
    drawn: dict = {}
    if generator.random() < 0.5:
        drawn["speed"] = generator.randint(90, 112) / 100
    if generator.random() < 0.6:
        drawn["equaliser"] = [generator.uniform(-8, 8) for _ in range(5)]
    if generator.random() < 0.4:
        # Cutoff in Hz, and the share of the harmonic part that is left above it.
        drawn["breath"] = (generator.uniform(1500, 6000), generator.uniform(0.0, 0.8))
    if generator.random() < 0.107:
        drawn["talker"] = generator.uniform(5, 15)
    if generator.random() < 0.35:
        # Reverberation time in seconds, and the reverberation's energy below the direct sound's, in dB.
        drawn["room"] = (generator.uniform(0.1, 0.5), generator.uniform(3, 12))
    if generator.random() < 0.25:
        drawn["gain"] = generator.uniform(1, 4)
    if generator.random() < 0.5 or not drawn:
        drawn["noise"] = (generator.choice(("white", "pink", "brown", "hum")), generator.uniform(8, 40))
    return drawn


def augment(waveform: np.ndarray, augmentation: dict, generator: np.random.Generator) -> np.ndarray:
    """Apply what `_draw_augmentation` drew, but for the speed and the second talker."""
    if "equaliser" in augmentation or "breath" in augmentation:
        spectrum = _stft(waveform)
        if "breath" in augmentation:
            cutoff, harmonic = augmentation["breath"]
            noise = _stft(generator.standard_normal(len(waveform))) / math.sqrt(_FFT * 0.375)
            noise *= _smooth(np.abs(spectrum))
            share = (1 - harmonic) / (1 + np.exp((cutoff - _FREQUENCIES) / 200))
            spectrum = np.sqrt(1 - share) * spectrum + np.sqrt(share) * noise
        if "equaliser" in augmentation:
            spectrum = spectrum * _equaliser(augmentation["equaliser"])
        waveform = _istft(spectrum, len(waveform))
    if "room" in augmentation:
        seconds, below = augmentation["room"]
        waveform = _reverberate(waveform, seconds, below, generator)
    if "gain" in augmentation:
        waveform = waveform * 10 ** (_slow(len(waveform), augmentation["gain"], generator) / 20)
    if "noise" in augmentation:
        kind, ratio = augmentation["noise"]
        noise = _noise(kind, len(waveform), generator)
        waveform = waveform + noise * (_rms(waveform) / _rms(noise) * 10 ** (-ratio / 20))
    return waveform


def _stft(waveform: np.ndarray) -> np.ndarray:
    padded = np.pad(waveform, (_FFT, _FFT + _HOP))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    return np.fft.rfft(windows * np.hanning(_FFT + 1)[:-1])  # (frames, bins)


def _istft(spectrum: np.ndarray, length: int) -> np.ndarray:
    frames = np.fft.irfft(spectrum, _FFT) * np.hanning(_FFT + 1)[:-1]
    output = np.zeros(_FFT + _HOP * (len(frames) - 1))
    steps = _FFT // _HOP
    blocks = frames.reshape(len(frames), steps, _HOP)
    for step in range(steps):
        output[step * _HOP :][: len(frames) * _HOP] += blocks[:, step].ravel()
    # Squared Hann windows at a quarter's hop add up to 1.5.
    return output[_FFT : _FFT + length] / 1.5


def _smooth(magnitudes: np.ndarray) -> np.ndarray:
    """Average power over 280 Hz, which removes harmonics and keeps formants."""
    width = 9
    padded = np.pad(magnitudes**2, ((0, 0), (width // 2 + 1, width // 2)), mode="edge").cumsum(1)
    return np.sqrt(np.maximum((padded[:, width:] - padded[:, :-width]) / width, 0))


def _equaliser(decibels: list[float]) -> np.ndarray:
    anchors = np.log(np.geomspace(80, 8000, len(decibels)))
    gains = np.interp(np.log(np.maximum(_FREQUENCIES, 20)), anchors, decibels)
    # No corner is left at the anchors.
    return 10 ** (np.convolve(np.pad(gains, 4, mode="edge"), np.full(9, 1 / 9), "valid") / 20)


def _fill_band(waveform: np.ndarray, speed: float, generator: np.random.Generator) -> np.ndarray:
    """Fill the band that slower playing left empty with noise shaped like the band below it."""
    edge = int(np.searchsorted(_FREQUENCIES, speed * SAMPLE_RATE / 2 * 0.95))
    spectrum = _stft(waveform)
    empty = len(_FREQUENCIES) - edge
    noise = _stft(generator.standard_normal(len(waveform))) / math.sqrt(_FFT * 0.375)
    below = _smooth(np.abs(spectrum))[:, edge - empty : edge][:, ::-1]
    slope = 10 ** (-np.linspace(2, 12, empty) / 20)
    spectrum[:, edge:] = noise[:, edge:] * below * slope
    return _istft(spectrum, len(waveform))


def _reverberate(waveform: np.ndarray, seconds: float, below: float, generator: np.random.Generator) -> np.ndarray:
    length = int(seconds * SAMPLE_RATE)
    tail = generator.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    first = int(generator.uniform(0.001, 0.01) * SAMPLE_RATE)
    tail[:first] = 0
    # Walls swallow high frequencies first.
    tail = np.convolve(tail, [0.25, 0.5, 0.25], "same")
    tail *= 10 ** (-below / 20) / np.linalg.norm(tail)
    tail[0] += 1
    size = 1 << (len(waveform) + length).bit_length()
    return np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(tail, size), size)[: len(waveform)]


def _noise(kind: str, length: int, generator: np.random.Generator) -> np.ndarray:
    if kind == "hum":
        mains = generator.choice((50.0, 60.0))
        time = np.arange(length) / SAMPLE_RATE
        tones = [
            np.sin(2 * np.pi * mains * k * time + generator.uniform(0, 2 * np.pi)) * generator.uniform(0.2, 1) / k
            for k in (1, 2, 3, 4, 5, 7)
        ]
        hiss = generator.standard_normal(length)
        return np.sum(tones, axis=0) + 0.1 * hiss
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(generator.standard_normal(size))
    slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
    spectrum *= np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 40.0) ** -slope
    return np.fft.irfft(spectrum, size)[:length]


def _slow(length: int, depth: float, generator: np.random.Generator) -> np.ndarray:
    anchors = generator.uniform(-depth, depth, 2 + length // SAMPLE_RATE)
    position = np.linspace(0, len(anchors) - 1, length)
    left = np.minimum(position.astype(int), len(anchors) - 2)
    # Cosine from one anchor to the next.
    share = (1 - np.cos(np.pi * (position - left))) / 2
    return anchors[left] * (1 - share) + anchors[left + 1] * share


def _mix(waveform: np.ndarray, other: np.ndarray, below: float) -> np.ndarray:
    other = np.resize(other, len(waveform))
    return waveform + other * (_rms(waveform) / max(_rms(other), 1e-9) * 10 ** (-below / 20))


def _rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(waveform**2)))


# The corpus as files.

_studio: Studio | NaturalStudio | None = None


def _start_worker(open_studio: Callable[[], Studio | NaturalStudio]) -> None:
    global _studio
    torch.set_num_threads(1)
    _studio = open_studio()


def _make(job: tuple[Path, str, int]) -> dict:
    """Write one utterance unless it is there, its line last, and return the line."""
    folder, split, index = job
    name = f"{split}/{split}-{index:06d}"
    line, audio = folder / f"{name}.json", folder / f"{name}.flac"
    if line.exists() and audio.exists():
        return json.loads(line.read_text(encoding="utf-8"))
    assert _studio is not None  # every worker starts with one
    waveform, record = _studio.utterance(split, index)
    with atomic_path(audio) as path:
        soundfile.write(path, waveform, SAMPLE_RATE, subtype="PCM_16", compression_level=0.3)
    text = json.dumps(record)
    with atomic_path(line) as path:
        path.write_text(text, encoding="utf-8")
    return json.loads(text)


def make_corpus(folder: Path, counts: dict[str, int], *, seed: int, pico: bool, workers: int = 0) -> dict[str, float]:
    """Make what is missing of a corpus, and its manifests.

    Args:
        folder: Where to.
        counts: Utterances of each split.
        seed: Of everything.
        pico: Whether to use SVOX Pico beside espeak-ng.
        workers: Processes; 0 works in this one.

    Returns:
        Seconds of each split.

    Raises:
        ValueError: the folder has a corpus with other settings.
    """
    return _make_all(folder, counts, {"version": 1, "seed": seed, "pico": pico}, partial(Studio, seed, pico), workers)


def make_natural_corpus(
    folder: Path, counts: dict[str, int], *, seed: int, voices: str, sentences: str | None = None, workers: int = 0
) -> dict[str, float]:
    """Make what is missing of a corpus spoken by Kokoro, and its manifests.

    Args:
        folder: Where to.
        counts: Utterances of each split.
        seed: Of everything.
        voices: Kokoro's weights: a folder or a hub name.
        sentences: A file of sentences; None takes nano's own grammar.
        workers: Processes; 0 works in this one.

    Returns:
        Seconds of each split.

    Raises:
        InputError: no weights, no sentences, or the folder has a corpus with other settings.
        ImportError: a package of the extra `natural` is missing.
    """
    studio = partial(NaturalStudio, seed, voices, sentences)
    # In this process first, where what is missing is one sentence.
    names = studio().kokoro.voices()
    text = "grammar" if sentences is None else stable_seed(Path(sentences).read_text(encoding="utf-8"))
    settings = {"version": 1, "seed": seed, "engine": "kokoro", "voices": stable_seed(*names), "sentences": text}
    return _make_all(folder, counts, settings, studio, workers)


def _make_all(
    folder: Path,
    counts: dict[str, int],
    settings: dict[str, object],
    open_studio: Callable[[], Studio | NaturalStudio],
    workers: int,
) -> dict[str, float]:
    """Make what is missing with a studio in each process, and write the manifests; return seconds of each split."""
    marker = folder / "settings.json"
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != settings:
        found = json.loads(marker.read_text(encoding="utf-8"))
        raise InputError(f"{folder} has a corpus made with {found}, not with {settings}; choose another folder")
    with atomic_path(marker) as path:
        path.write_text(json.dumps(settings), encoding="utf-8")
    jobs = [(folder, split, index) for split, count in counts.items() for index in range(count)]
    records: dict[str, list[dict]] = {split: [] for split in counts}
    for (_, split, _), record in zip(jobs, tqdm(_run(jobs, open_studio, workers), total=len(jobs)), strict=True):
        records[split].append(record)
    for split, lines in records.items():
        with atomic_path(folder / f"{split}.jsonl") as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {split: sum(line["duration"] for line in lines) for split, lines in records.items()}


def _run(jobs: list, open_studio: Callable, workers: int) -> Iterator[dict]:
    if not workers:
        threads = torch.get_num_threads()
        _start_worker(open_studio)
        yield from map(_make, jobs)
        torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(open_studio,)) as pool:
        yield from pool.map(_make, jobs, chunksize=8)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="corpus.py", description="Make a corpus of synthesised English speech.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--engine", choices=("espeak", "kokoro"), default="espeak", help="who speaks (default: espeak)")
    parser.add_argument("--voices", metavar="FOLDER", help="Kokoro's weights: a folder, or a name on the hub")
    parser.add_argument("--sentences", metavar="FILE", help="for Kokoro, one on each line (default: from a grammar)")
    parser.add_argument(
        "--take", type=Path, metavar="FOLDER", help="take a corpus over that Kokoro spoke; makes nothing"
    )
    parser.add_argument("--hours", type=float, default=10.0, help="of training speech (default: 10)")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 works in this one (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--valid", type=int, default=COUNTS["valid"], help="utterances (default: %(default)s)")
    parser.add_argument("--test", type=int, default=COUNTS["test"], help="utterances (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.hours < 10_000:
        parser.error(f"--hours must be positive, got {arguments.hours:g}")
    if min(arguments.workers, arguments.valid, arguments.test) < 0:
        parser.error("--workers, --valid and --test must not be negative")
    if arguments.out.exists() and not arguments.out.is_dir():
        parser.error(f"{arguments.out} is a file, not a folder")
    try:
        seconds = (
            take_corpus(arguments.take, arguments.out, arguments.hours)
            if arguments.take
            else _make_what_is_asked(arguments)
        )
    except (ImportError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    for split, total in seconds.items():
        print(f"{split}: {total / 3600:.2f} h")
    return OK


def _make_what_is_asked(arguments: argparse.Namespace) -> dict[str, float]:
    """Make a corpus as the command's arguments say."""
    natural = arguments.engine == "kokoro"
    train = math.ceil(arguments.hours * 3600 / (NATURAL_MEAN_SECONDS if natural else MEAN_SECONDS))
    counts = {"valid": arguments.valid, "test": arguments.test, "train": train}
    options = {"seed": arguments.seed, "workers": arguments.workers}
    if natural:
        sentences = arguments.sentences
        return make_natural_corpus(arguments.out, counts, voices=arguments.voices, sentences=sentences, **options)
    pico = has_pico()
    if not pico:
        print("SVOX Pico's natural voices are missing (pip install ttspico); espeak-ng speaks alone", file=sys.stderr)
    return make_corpus(arguments.out, counts, pico=pico, **options)


if __name__ == "__main__":
    sys.exit(main())
