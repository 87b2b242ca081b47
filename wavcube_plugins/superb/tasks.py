"""The tasks of SUPERB and SUPERB-SG: their names in s3prl, what s3prl prints, and the rule that makes it a score."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wavcube_plugins.data.corpora import vcc2020
from wavcube_plugins.errors import InputError

_NUMBER = r"(-?(?:nan|inf|[0-9.]+(?:e[+-]?\d+)?))"

# The protocol's grid; only the learning rate is tuned.
LEARNING_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
FOLDS = tuple(f"fold{number}" for number in range(1, 6))


class UnknownTaskError(InputError):
    """There is no task of that name."""


@dataclass(frozen=True)
class Metric:
    """A score of a task.

    Args:
        name: Short, unique in its task.
        title: As shown in tables, with its unit.
        higher_is_better: Whether more is better.
        printed: A regular expression for the text before the number in the output of s3prl's evaluation; "" if this
            package computes the score.
        scale: The factor from the printed number to the one in tables.
        digits: Decimals in tables.
    """

    name: str
    title: str
    higher_is_better: bool
    printed: str = ""
    scale: float = 1.0
    digits: int = 2

    def read(self, output: str) -> float | None:
        """Return the last score of this kind in an output, or None."""
        values = numbers(self.printed, output) if self.printed else []
        return values[-1] * self.scale if values else None

    def better(self, one: float, other: float) -> bool:
        """Return whether one value beats another; NaN beats nothing, and anything beats NaN."""
        if one != one or other != other:
            return one == one
        return one > other if self.higher_is_better else one < other


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: SUPERB's abbreviation, in lower case.
        title: In words.
        downstream: s3prl's name, for -d.
        corpora: The corpora it needs, by their names in a bench file.
        metrics: The main one first.
        decides: The score on dev that chooses a learning rate or a layer.
        best: s3prl's name of the checkpoint that was best on dev; "" where every checkpoint is tested, or none exists.
        split: What to evaluate, for -t.
        learning_rate: That of the stock configuration; None where nothing is trained.
        variants: Folds or target speakers, each a training of its own; scores are averaged over them.
        variant_key: Where in the configuration the variant goes.
        rule: What is special about the task, in words.
        packages: The modules that s3prl's code of the task imports, beyond those that s3prl itself needs, and the
            packages they come from.
        stand_ins: Those of them that the wrapper replaces where they are missing.
    """

    name: str
    title: str
    downstream: str
    corpora: tuple[str, ...]
    metrics: tuple[Metric, ...]
    decides: Metric
    best: str = "dev-best.ckpt"
    split: str = "test"
    learning_rate: float | None = 1e-4
    variants: tuple[str, ...] = ("",)
    variant_key: str = ""
    rule: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    stand_ins: tuple[str, ...] = ()

    @property
    def config_name(self) -> str:
        """The file of its stock configuration."""
        return f"{self.name}.yaml"

    @property
    def trained(self) -> bool:
        """Whether anything is trained."""
        return self.learning_rate is not None


def numbers(before: str, output: str) -> list[float]:
    """Return the numbers that follow a regular expression, in order; s3prl prints them over its progress bars."""
    return [float(value) for value in re.findall(before + _NUMBER, output)]


def _accuracy(name: str, title: str, downstream: str, corpora: tuple[str, ...], **more) -> Task:
    metric = Metric("acc", "acc %", True, r"test acc: ", 100)
    return Task(name, title, downstream, corpora, (metric,), Metric("acc", "acc %", True, r"dev acc: ", 100), **more)


TASKS = (
    Task(
        "pr",
        "Phone recognition",
        "ctc",
        ("librispeech",),
        (Metric("per", "PER %", False, r"test per: ", 100),),
        Metric("per", "PER %", False, r"dev per: ", 100),
        learning_rate=1e-2,
        packages={"editdistance": "editdistance", "pandas": "pandas"},
    ),
    Task(
        "asr",
        "Speech recognition",
        "asr",
        ("librispeech",),
        (Metric("wer", "WER %", False, r"test-clean wer: "),),
        Metric("wer", "WER %", False, r"dev-clean wer: "),
        best="dev-clean-best.ckpt",
        split="test-clean",
        packages={"editdistance": "editdistance", "pandas": "pandas"},
    ),
    _accuracy(
        "ks",
        "Keyword spotting",
        "speech_commands",
        ("speech_commands", "speech_commands_test"),
        packages={"catalyst": "catalyst"},
        stand_ins=("catalyst",),
    ),
    Task(
        "qbe",
        "Query by example",
        "quesst14_dtw",
        ("quesst14",),
        (Metric("mtwv", "MTWV x100", True),),
        Metric("mtwv", "MTWV x100", True),
        best="",
        learning_rate=None,
        rule="nothing is trained; the layer with the best MTWV on dev is tested",
        packages={"dtw": "dtw-python", "lxml": "lxml", "scipy": "scipy"},
        stand_ins=("dtw", "lxml"),
    ),
    _accuracy("sid", "Speaker identification", "voxceleb1", ("voxceleb1",), packages={"librosa": "librosa"}),
    Task(
        "asv",
        "Speaker verification",
        "sv_voxceleb1",
        ("voxceleb1",),
        (Metric("eer", "EER %", False, r"sv-voxceleb1/test-EER: ", 100),),
        Metric("eer", "EER %", False, r"sv-voxceleb1/test-EER: ", 100),
        best="",
        rule="VoxCeleb1 has no dev set: every checkpoint is tested and the best EER counts",
        packages={"sox": "sox", "librosa": "librosa", "joblib": "joblib", "sklearn": "scikit-learn"},
        stand_ins=("sox",),
    ),
    Task(
        "sd",
        "Speaker diarization",
        "diarization",
        ("libri2mix_diarization",),
        (Metric("der", "DER %", False),),
        Metric("acc", "frame acc %", True, r"mode dev acc ", 100),
        best="best-states-dev.ckpt",
        rule="the least DER over thresholds 0.3 to 0.7 and medians of 1 and 11 frames, no collar, overlaps scored",
        packages={"h5py": "h5py", "pandas": "pandas", "scipy": "scipy"},
    ),
    _accuracy(
        "er",
        "Emotion recognition",
        "emotion",
        ("iemocap",),
        variants=FOLDS,
        variant_key="downstream_expert.datarc.test_fold",
        rule="mean of five folds",
    ),
    _accuracy(
        "ic",
        "Intent classification",
        "fluent_commands",
        ("fluent_speech_commands",),
        packages={"pandas": "pandas"},
    ),
    Task(
        "sf",
        "Slot filling",
        "ctc",
        ("snips",),
        (
            Metric("f1", "F1 %", True, r"test slot_type_f1: ", 100),
            Metric("cer", "CER %", False, r"test slot_value_cer: ", 100),
        ),
        Metric("f1", "F1 %", True, r"dev slot_type_f1: ", 100),
        packages={"editdistance": "editdistance", "pandas": "pandas"},
    ),
    Task(
        "se",
        "Enhancement",
        "enhancement_stft",
        ("voicebank",),
        (
            Metric("pesq", "PESQ", True, r"Average pesq of \d+ utts is "),
            Metric("stoi", "STOI", True, r"Average stoi of \d+ utts is ", digits=3),
        ),
        Metric("pesq", "PESQ", True, r"Average pesq of \d+ utts is "),
        best="best-states-dev.ckpt",
        packages={"asteroid": "asteroid", "h5py": "h5py", "librosa": "librosa", "pesq": "pesq", "pystoi": "pystoi"},
        stand_ins=("asteroid",),
    ),
    Task(
        "ss",
        "Separation",
        "separation_stft",
        ("libri2mix",),
        (Metric("si_sdri", "SI-SDRi dB", True, r"Average si_sdr of \d+ utts: "),),
        Metric("si_sdri", "SI-SDRi dB", True, r"Average si_sdr of \d+ utts: "),
        best="best-states-dev.ckpt",
        packages={"asteroid": "asteroid", "h5py": "h5py", "librosa": "librosa", "pesq": "pesq", "pystoi": "pystoi"},
        stand_ins=("asteroid",),
    ),
    Task(
        "vc",
        "Voice conversion",
        "a2o-vc-vcc2020",
        ("vcc2020",),
        (
            Metric("mcd", "MCD dB", False),
            Metric("wer", "VC WER %", False, digits=1),
            Metric("asv", "ASV accept %", True, digits=1),
        ),
        Metric("mcd", "MCD dB", False),
        best="",
        variants=vcc2020.TARGET_SPEAKERS,
        variant_key="downstream_expert.trgspk",
        rule="mean of four target speakers, each at the step with the least MCD",
        packages={"h5py": "h5py", "librosa": "librosa", "pyworld": "pyworld", "sklearn": "scikit-learn"},
    ),
)
BY_NAME = {task.name: task for task in TASKS}


def find_tasks(names: Iterable[str]) -> list[Task]:
    """Return tasks by their names, in the order of `TASKS`.

    Raises:
        UnknownTaskError: there is no task of such a name.
    """
    names = list(names)
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise UnknownTaskError(f"no task {unknown[0]!r}; there are {', '.join(BY_NAME)}")
    return [task for task in TASKS if task.name in names]
