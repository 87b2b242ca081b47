"""Measures WavCube-nano: `python measure.py --corpus CORPUS --stage1 RUN --stage2 RUN --out results.json`.

What it measures, on speech that none of the models was trained on:

* reconstruction by each stage: STOI and PESQ-WB, on synthesised speech of known and of new speakers, on the sentences
  of the package's demo, and on real recordings (`--recordings`), which are read and never copied or trained on;
* linear probes (`wavcube_plugins.evaluation.probes`) of the teacher's last layer, of each latent and of log-mel:
  phones frame by frame, trained on clean utterances of espeak-ng, whose times are exact; and speakers, trained on
  clean utterances of those who speak in `test.jsonl` or `valid.jsonl` too. Real recordings with a `transcripts.tsv`
  beside them are scored by the same phone probe, and by a speaker probe that leaves out one recording at a time.

It prints two tables in Markdown, which results.md keeps, writes every number to the JSON file, and draws them in
results.png beside it.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import math
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from wavcube_plugins.audio import AUDIO_SUFFIXES, AudioError, AudioWarning, read_audio, write_audio
from wavcube_plugins.checkpoints import CheckpointError, load_model
from wavcube_plugins.checkpoints.backbones import load_backbone
from wavcube_plugins.errors import InputError
from wavcube_plugins.evaluation import Comparison, compare, save_comparison
from wavcube_plugins.evaluation.probes import (
    SAMPLE_RATE,
    PhoneItem,
    fit_phone_probe,
    frame_labels,
    log_mel_frames,
    pool,
    score_phones,
    speaker_probe,
)
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.wavcube import WavCube, normalise
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.pretraining.data import VALIDATION_LEVEL
from wavcube_plugins.pretraining.runs import RUN_NAME, TEACHER_NAME, load_run
from wavcube_plugins.synthetic.bundled import bundled_speech
from wavcube_plugins.synthetic.bundled import split as split_demo
from wavcube_plugins.synthetic.speech import PHONES, SILENCE

INDEX = {phone: index for index, phone in enumerate(PHONES)}
STAGE1, STAGE2, ABLATION = "stage 1", "stage 2", "without anchoring"
TEACHER, LOG_MEL = "teacher", "log-mel"
KNOWN, NEW, ALL, DEMO = "known speakers", "new speakers", "all synthesised", "demo sentences"
SPEAKERS, OTHERS = "real, spk*", "real, others"
PICO, RECORDINGS = "Pico's voices", "real recordings"

# The recordings of one kind that make a row of their own; others beside them differ in everything.
_RECORDINGS_PATTERN = "spk*"
_TRANSCRIPTS = "transcripts.tsv"
# Symbols of TIMIT that are not ours, as ours. Closures are silence, as they are between espeak-ng's phones.
_TIMIT = {
    **dict.fromkeys("sil cl vcl epi h# pau bcl dcl gcl kcl pcl tcl q".split(), SILENCE),
    **{"ax": "AH", "ax-h": "AH", "ix": "IH", "axr": "ER", "ux": "UW", "dx": "T", "hv": "HH"},
    **{"el": "L", "em": "M", "en": "N", "nx": "N", "eng": "NG"},
}
_COLOURS = {TEACHER: "#2e8b57", STAGE1: "#1f5fa8", STAGE2: "#d1495b", ABLATION: "#edae49", LOG_MEL: "#5c6b73"}
_INK, _FAINT = "#2b2b33", "#d9d9de"


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        phone_training: Utterances the phone probes are trained on.
        per_speaker: Utterances of each speaker that the speaker probes are trained on.
        reconstructions: Synthesised utterances to reconstruct, half of them of new speakers.
        demo: Demo sentences to reconstruct.
        probe_tests: Utterances of each split to test the probes on, None for all.
        examples: Utterances of each kind that `--examples` writes.
    """

    phone_training: int = 600
    per_speaker: int = 12
    reconstructions: int = 60
    demo: int = 30
    probe_tests: int | None = None
    examples: int = 2


QUICK = Sizes(phone_training=12, per_speaker=2, reconstructions=4, demo=2, probe_tests=12, examples=1)


@dataclass(frozen=True)
class Recording:
    """A waveform (T,) at 16 kHz with its name and what is known of it."""

    name: str
    waveform: Tensor
    group: str
    speaker: str = ""
    phones: tuple[str, ...] = ()


# What is read.


def read_corpus(folder: Path, split: str) -> list[dict]:
    """Read a manifest of `corpus.py`.

    Raises:
        InputError: it is not there, or a line is not what `corpus.py` writes.
    """
    path = folder / f"{split}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make the corpus with corpus.py") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON, {error}") from error
        if not isinstance(record, dict) or not record.keys() >= {"id", "path", "speaker"}:
            raise InputError(f"{path}, line {number}: an utterance has an id, a path and a speaker")
        if not record.get("phones", True):
            raise InputError(f"{path}, line {number}: the list of phones is empty")
        try:
            labels = {label for label, _, _ in record.get("phones", ())} | set(record.get("pronunciation", ()))
        except (TypeError, ValueError):
            raise InputError(f"{path}, line {number}: phones are lists of label, beginning and end") from None
        if not labels <= INDEX.keys():
            raise InputError(f"{path}, line {number}: {min(labels - INDEX.keys())!r} is no phone")
        records.append(record)
    return records


def read_recordings(folder: Path) -> list[Recording]:
    """Read every audio file directly in a folder that can be read, with what its `transcripts.tsv` says.

    Raises:
        InputError: there are none, or the transcripts have a phone that is not TIMIT's.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    known: dict[str, dict] = {}
    if (folder / _TRANSCRIPTS).is_file():
        with open(folder / _TRANSCRIPTS, encoding="utf-8", newline="") as file:
            known = {row.get("file", ""): row for row in csv.DictReader(file, delimiter="\t")}
    recordings = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in AUDIO_SUFFIXES or not path.is_file():
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AudioWarning)
                waveform = read_audio(path, SAMPLE_RATE)
        except AudioError as error:
            print(f"measure.py: left out: {error}", file=sys.stderr)
            continue
        row = known.get(path.name, {})
        phones = tuple(_TIMIT.get(phone, phone.upper()) for phone in (row.get("phones") or "").split())
        if not INDEX.keys() >= set(phones):
            raise InputError(f"{folder / _TRANSCRIPTS}: {min(set(phones) - INDEX.keys())!r} is no phone of TIMIT")
        group = SPEAKERS if path.match(_RECORDINGS_PATTERN) else OTHERS
        recordings.append(Recording(path.name, waveform, group, row.get("speaker") or "", phones))
    if not recordings:
        raise InputError(f"{folder}: no audio files that can be read")
    return recordings


def load(source: Path, stage: int) -> WavCube:
    """Load the newest model of a training run, or a model's folder or file.

    Raises:
        InputError: there is none, or it says that it is of the other stage.
        CheckpointError: it cannot be loaded.
    """
    if not source.exists():
        raise InputError(f"{source}: no such folder")
    model = load_run(source)[0] if (source / RUN_NAME).is_file() else load_model(source)
    found = model.metadata.get("stage", str(stage))
    if found != str(stage):
        raise InputError(f"{source}: is a model of stage {found}, one of stage {stage} was expected")
    return model


def load_teacher(source: Path | None, stage1: Path) -> WavLM:
    """Load the teacher, which by default is what stage 1 has for a WavLM."""
    if source is None:
        source = stage1 / TEACHER_NAME if (stage1 / RUN_NAME).is_file() else stage1
    if not source.exists():
        raise InputError(f"{source}: no such folder")
    return load_backbone(source)


# Reconstruction.


def choose_reconstructed(corpus: Path, test: list[dict], known: set[str], sizes: Sizes) -> list[Recording]:
    """Read the synthesised speech to reconstruct: of known and of new speakers, and demo sentences by all speakers."""
    half = sizes.reconstructions // 2
    chosen = []
    for group, records in (
        (KNOWN, [record for record in test if record["speaker"] in known]),
        (NEW, [record for record in test if record["speaker"] not in known]),
    ):
        chosen += [
            Recording(record["id"], read_audio(corpus / record["path"], SAMPLE_RATE), group, record["speaker"])
            for record in records[:half]
        ]
    demo = spread(split_demo(bundled_speech())["test"], sizes.demo)
    return chosen + [Recording(one.name, read_audio(one.path, SAMPLE_RATE), DEMO, one.speaker) for one in demo]


def reconstruct(
    models: Mapping[str, WavCube], speech: Sequence[Recording], examples: Path | None, per_group: int
) -> list[dict]:
    """Send speech through every model and back.

    Args:
        models: By name.
        speech: What to reconstruct.
        examples: A folder for originals, reconstructions and pictures of some, or None.
        per_group: Of how many of each kind.

    Returns:
        A line for every model and utterance, with all metrics.
    """
    lines, done = [], Counter()
    for item in tqdm(speech, desc="reconstruction", unit="utterance"):
        done[item.group] += 1
        # The level of the decoders' own training; they cannot know another, since encoders take it away.
        waveform = item.waveform * (10 ** (VALIDATION_LEVEL / 20) / item.waveform.abs().max().clamp_min(1e-5))
        folder = examples if done[item.group] <= per_group else None
        stem = f"{item.group}_{Path(item.name).stem}".replace("*", "").replace(",", "").replace(" ", "_")
        if folder is not None:
            write_audio(folder / f"{stem}.original.flac", waveform, SAMPLE_RATE)
        for name, model in models.items():
            with torch.inference_mode():
                estimate = model.reconstruct(waveform[None])[0][0].clamp(-1, 1)
            found = compare(waveform, estimate, SAMPLE_RATE)
            lines.append({"model": name, "group": item.group, "id": item.name, **found.to_dict()})
            if folder is not None:
                _write_example(folder, stem, name, item.name, waveform, estimate, found)
    return lines


def _write_example(
    folder: Path, stem: str, model: str, title: str, waveform: Tensor, estimate: Tensor, found: Comparison
) -> None:
    kind = model.replace(" ", "_")
    write_audio(folder / f"{stem}.{kind}.flac", estimate, SAMPLE_RATE)
    save_comparison(
        folder / f"{stem}.{kind}.png",
        waveform,
        estimate,
        SAMPLE_RATE,
        title=f"{title}, {model}",
        names=("original", model),
        comparison=found,
    )


def average(lines: Iterable[dict]) -> dict[str, dict[str, dict]]:
    """Average the lines of `reconstruct` by model and group; what is not defined does not count."""
    groups: dict[str, dict[str, list[dict]]] = {}
    for line in lines:
        by_group = groups.setdefault(line["model"], {})
        by_group.setdefault(line["group"], []).append(line)
        if line["group"] in (KNOWN, NEW):
            by_group.setdefault(ALL, []).append(line)
    order = (KNOWN, NEW, ALL, DEMO, SPEAKERS, OTHERS)
    return {
        model: {group: _mean(by_group[group]) for group in order if group in by_group}
        for model, by_group in groups.items()
    }


def _mean(lines: list[dict]) -> dict:
    result: dict = {"utterances": len(lines)}
    for metric in ("stoi", "pesq", "si_sdr", "mel_distance"):
        values = [line[metric] for line in lines if line[metric] is not None]
        result[metric] = round(statistics.fmean(values), 4) if values else None
    return result


# Probes.


class Representations:
    """Turns a waveform into every representation that is probed.

    Args:
        teacher: The encoder all started from.
        models: By name.
    """

    def __init__(self, teacher: WavLM, models: Mapping[str, WavCube]):
        self.teacher, self.models = teacher, models
        # A frozen WavLM needs to run but once.
        self._frozen = {
            name for name, model in models.items() if model.config.wavlm_layer == -1 and _equal(model.wavlm, teacher)
        }

    @property
    def names(self) -> list[str]:
        """The representations, in the order of the tables."""
        return [TEACHER, *self.models, LOG_MEL]

    @torch.inference_mode()
    def __call__(self, waveform: Tensor) -> dict[str, Tensor]:
        """Return (L, C) of a waveform (T,), by name; latents of 25 Hz have each frame twice."""
        normalised = normalise(waveform[None])
        features = self.teacher(normalised)
        found = {TEACHER: features[0]}
        for name, model in self.models.items():
            own = features if name in self._frozen else model.encoder_features(normalised)
            latent = model.compressor(own)[0]
            found[name] = latent.repeat_interleave(model.config.bottleneck.frame_stride, 0)[: len(features[0])]
        return found | {LOG_MEL: log_mel_frames(waveform)}


def _equal(first: WavLM, second: WavLM) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@dataclass(frozen=True)
class ProbeData:
    """The utterances of the probes, as lines of the manifests."""

    phone_train: list[dict]
    phone_test: list[dict]
    speaker_train: list[dict]
    speaker_test: list[dict]

    @property
    def utterances(self) -> list[dict]:
        """All of them, each once."""
        parts = self.phone_train, self.phone_test, self.speaker_train, self.speaker_test
        return list({record["id"]: record for record in itertools.chain(*parts)}.values())


def choose_probe_data(train: list[dict], valid: list[dict], test: list[dict], sizes: Sizes) -> ProbeData:
    """Choose what the probes are trained and tested on.

    Raises:
        InputError: the corpus has no clean training utterance with phones, nothing to test them on, or no speaker of
            the training set in the others.
    """
    # The speed of an augmented utterance makes it another speaker's, and its noise is not in the test set.
    clean = [record for record in train if not record.get("augmentation")]
    timed = [record for record in clean if "phones" in record]
    valid, test = valid[: sizes.probe_tests], test[: sizes.probe_tests]
    phone_test = [record for record in test if "phones" in record or "pronunciation" in record]
    known = {record["speaker"] for record in clean}
    speaker_test = [record for record in test + valid if record["speaker"] in known]
    if not timed or not any("phones" in record for record in phone_test):
        raise InputError("the corpus has no clean utterances with timed phones in train.jsonl and test.jsonl")
    if not speaker_test:
        raise InputError("no speaker of clean utterances in train.jsonl speaks in test.jsonl or valid.jsonl")
    wanted = {record["speaker"] for record in speaker_test}
    counts: Counter[str] = Counter()
    speaker_train = []
    for record in clean:
        if record["speaker"] in wanted and counts[record["speaker"]] < sizes.per_speaker:
            counts[record["speaker"]] += 1
            speaker_train.append(record)
    # Those that are encoded anyway come first.
    phone_train = [record for record in speaker_train if "phones" in record][: sizes.phone_training]
    taken = {record["id"] for record in phone_train}
    rest = [record for record in timed if record["id"] not in taken]
    phone_train += spread(rest, sizes.phone_training - len(phone_train))
    return ProbeData(phone_train, phone_test, speaker_train, speaker_test)


def probe(
    corpus: Path, data: ProbeData, recordings: Sequence[Recording], representations: Representations, known: set[str]
) -> dict[str, dict]:
    """Train and score the probes of every representation.

    Args:
        corpus: The folder of the utterances.
        data: What to train and test on.
        recordings: Real speech; that with phones or a speaker is scored too.
        representations: What to probe.
        known: Speakers of the training set.

    Returns:
        Scores in percent, by representation.
    """
    recordings = [recording for recording in recordings if recording.phones or recording.speaker]
    framewise = {record["id"] for record in data.phone_train + data.phone_test} | {one.name for one in recordings}
    frames: dict[str, dict[str, Tensor]] = {name: {} for name in representations.names}
    pooled: dict[str, dict[str, Tensor]] = {name: {} for name in representations.names}
    speech = _waveforms(corpus, data.utterances, recordings)
    total = len(data.utterances) + len(recordings)
    for key, waveform in tqdm(speech, desc="encoding", unit="utterance", total=total):
        for name, features in representations(waveform).items():
            pooled[name][key] = pool(features)
            if key in framewise:
                # Without its mean over the utterance, which is the speaker and the microphone, log-mel does better.
                frames[name][key] = features - features.mean(0) if name == LOG_MEL else features
    results = {}
    for name in tqdm(representations.names, desc="probes", unit="representation"):
        scores = _phone_scores(frames[name], data, recordings, known)
        results[name] = scores | _speaker_scores(pooled[name], data, recordings)
        frames[name].clear()
    return results


def _waveforms(corpus: Path, records: list[dict], recordings: Sequence[Recording]) -> Iterator[tuple[str, Tensor]]:
    for record in records:
        yield record["id"], read_audio(corpus / record["path"], SAMPLE_RATE)
    # Names of files, which no id of the corpus is.
    for recording in recordings:
        yield recording.name, recording.waveform


def _phone_scores(
    frames: Mapping[str, Tensor], data: ProbeData, recordings: Sequence[Recording], known: set[str]
) -> dict:
    def item(record: dict) -> PhoneItem:
        features = frames[record["id"]]
        if "phones" not in record:
            return PhoneItem(features, [INDEX[label] for label in record["pronunciation"]])
        labels = torch.tensor([INDEX[label] for label in frame_labels(record["phones"], len(features))])
        return PhoneItem(features, [INDEX[label] for label, _, _ in record["phones"]], labels)

    fitted = fit_phone_probe([item(record) for record in data.phone_train], len(PHONES))
    timed = [record for record in data.phone_test if "phones" in record]
    parts = {
        "test": [item(record) for record in timed],
        KNOWN: [item(record) for record in timed if record["speaker"] in known],
        NEW: [item(record) for record in timed if record["speaker"] not in known],
        PICO: [item(record) for record in data.phone_test if "phones" not in record],
        RECORDINGS: [
            PhoneItem(frames[recording.name], [INDEX[label] for label in recording.phones])
            for recording in recordings
            if recording.phones
        ],
    }
    phones = {}
    for part, items in parts.items():
        if not items:
            continue
        scores = score_phones(fitted, items, silence=INDEX[SILENCE])
        phones[part] = {"phone_error_rate": _percent(scores.phone_error_rate), "phones": scores.phones}
        if not math.isnan(scores.frame_accuracy):
            phones[part] |= {"frame_accuracy": _percent(scores.frame_accuracy), "frames": scores.frames}
    commonest = torch.cat([one.labels for one in parts["test"] if one.labels is not None]).bincount().max()
    phones["test"]["commonest_label"] = _percent(int(commonest) / phones["test"]["frames"])
    return {"channels": next(iter(frames.values())).shape[1], "phones": phones}


def _speaker_scores(pooled: Mapping[str, Tensor], data: ProbeData, recordings: Sequence[Recording]) -> dict:
    train, test = (
        [(pooled[record["id"]], record["speaker"]) for record in part]
        for part in (data.speaker_train, data.speaker_test)
    )
    scores = speaker_probe(train, test)
    result = {"speakers": {**dataclasses.asdict(scores), "accuracy": _percent(scores.accuracy)}}
    real = [(pooled[recording.name], recording.speaker) for recording in recordings if recording.speaker]
    counts = Counter(speaker for _, speaker in real)
    real = [pair for pair in real if counts[pair[1]] > 1]
    if len({speaker for _, speaker in real}) > 1:
        right = [speaker_probe(real[:i] + real[i + 1 :], real[i : i + 1]).accuracy for i in range(len(real))]
        result["real_speakers"] = {
            "accuracy": _percent(statistics.fmean(right)),
            "utterances": len(real),
            "speakers": len({speaker for _, speaker in real}),
        }
    return result


def _percent(share: float) -> float:
    return round(100 * share, 2)


def spread(items: Sequence, count: int) -> list:
    """Return at most so many of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


# What is shown.


def tables(results: Mapping) -> str:
    """Return the results as two tables in Markdown."""
    reconstruction, probes = results["reconstruction"], results["probes"]
    groups = list(dict.fromkeys(group for scores in reconstruction.values() for group in scores))
    counts = next(iter(reconstruction.values()))
    lines = _table(
        ["STOI / PESQ-WB", *(f"{group} ({counts[group]['utterances']})" for group in groups)],
        [
            [model, *(f"{_number(scores[group]['stoi'], 3)} / {_number(scores[group]['pesq'], 2)}" for group in groups)]
            for model, scores in reconstruction.items()
        ],
    )
    header = ["linear probe", "channels", "frame accuracy %", "phone error rate %", "of new speakers"]
    header += [PICO, RECORDINGS, "speaker accuracy %", "of real speakers"]
    rows = []
    for name, scores in probes.items():
        phones = scores["phones"]
        row = [name, str(scores["channels"]), _number(phones["test"].get("frame_accuracy"), 1)]
        for part in ("test", NEW, PICO, RECORDINGS):
            row.append(_number(phones.get(part, {}).get("phone_error_rate"), 1))
        for part in ("speakers", "real_speakers"):
            row.append(_number(scores.get(part, {}).get("accuracy"), 1))
        rows.append(row)
    # A column that nothing fills is left out.
    filled = [column for column in range(len(header)) if any(row[column] != "–" for row in rows)]
    lines += ["", *_table([header[i] for i in filled], [[row[i] for i in filled] for row in rows])]
    first = next(iter(probes.values()))
    chance = first["phones"]["test"]["commonest_label"]
    lines += [
        "",
        f"Always the commonest label: {chance:.1f} % of the frames. "
        f"A guess: {100 / first['speakers']['speakers']:.1f} % of the {first['speakers']['utterances']} utterances "
        f"by {first['speakers']['speakers']} speakers.",
    ]
    return "\n".join(lines)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def draw(path: Path, results: Mapping) -> None:
    """Draw the results: reconstruction above, probes below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.2), facecolor="white", layout="constrained")
    rows: Any = figure.subfigures(2, 1, height_ratios=(1, 1), hspace=0.05)
    reconstruction, probes = results["reconstruction"], results["probes"]
    for axes, metric, title, bottom in zip(
        rows[0].subplots(1, 2), ("stoi", "pesq"), ("STOI", "PESQ-WB"), (0.0, 1.0), strict=True
    ):
        groups = [group for group in next(iter(reconstruction.values())) if group != ALL]
        width = 0.8 / len(reconstruction)
        for number, (model, scores) in enumerate(reconstruction.items()):
            positions = [index - 0.4 + (number + 0.5) * width for index in range(len(groups))]
            heights = [(scores[group][metric] or bottom) - bottom for group in groups]
            bars = axes.bar(positions, heights, 0.92 * width, bottom=bottom, color=_COLOURS[model], label=model)
            labels = [_number(scores[group][metric], 2) for group in groups]
            axes.bar_label(bars, labels, fontsize=6.5, color=_INK, padding=1.5)
        axes.set_xticks(range(len(groups)), [group.replace(" ", "\n", 1) for group in groups])
        # Small differences look small.
        axes.set_ylim(bottom, max(axes.get_ylim()[1], bottom + 1))
        axes.set_title(f"Reconstruction, {title}", loc="left", fontsize=10.5, weight="bold", color=_INK)
        _tidy(axes, "y")
    handles, labels = axes.get_legend_handles_labels()
    rows[0].legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    phones = [scores["phones"]["test"] for scores in probes.values()]
    panels = (
        ("Frames with the right phone, %", [scores["frame_accuracy"] for scores in phones]),
        ("Phone error rate, % (less is better)", [scores["phone_error_rate"] for scores in phones]),
        ("Speakers recognised, %", [scores["speakers"]["accuracy"] for scores in probes.values()]),
    )
    for axes, (title, values) in zip(rows[1].subplots(1, 3, sharey=True), panels, strict=True):
        bars = axes.barh(range(len(values)), values, 0.72, color=[_COLOURS[name] for name in probes])
        axes.bar_label(bars, [f"{value:.1f}" for value in values], fontsize=8.5, color=_INK, padding=3)
        axes.set_yticks(range(len(values)), list(probes))
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.margins(x=0.14)
        axes.set_title(title, loc="left", fontsize=10.5, weight="bold", color=_INK)
        _tidy(axes, "x")
    rows[1].supxlabel("linear probes", fontsize=9, color=_INK)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140)


def _tidy(axes, grid: str) -> None:
    axes.grid(axis=grid, color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=8.5, length=0)


# The command.


def measure(arguments: argparse.Namespace) -> dict:
    """Measure everything and return what goes into the JSON file."""
    sizes = QUICK if arguments.quick else Sizes()
    began = time.perf_counter()
    train, valid, test = (read_corpus(arguments.corpus, split) for split in ("train", "valid", "test"))
    data = choose_probe_data(train, valid, test, sizes)
    known = {record["speaker"] for record in train}
    recordings = read_recordings(arguments.recordings) if arguments.recordings else []
    sources = {STAGE1: (arguments.stage1, 1), STAGE2: (arguments.stage2, 2), ABLATION: (arguments.no_anchoring, 2)}
    models = {name: load(source, stage) for name, (source, stage) in sources.items() if source is not None}
    representations = Representations(load_teacher(arguments.teacher, arguments.stage1), models)
    speech = choose_reconstructed(arguments.corpus, test, known, sizes) + recordings
    loaded = {TEACHER: representations.teacher, **models}
    lines = reconstruct(models, speech, arguments.examples, sizes.examples)
    probes = probe(arguments.corpus, data, recordings, representations, known)
    return {
        "reconstruction": average(lines),
        "probes": probes,
        "models": {name: {k: v for k, v in part.metadata.items() if k != "source"} for name, part in loaded.items()},
        "settings": {
            **dataclasses.asdict(sizes),
            "phone_training_utterances": len(data.phone_train),
            "speaker_training_utterances": len(data.speaker_train),
        },
        "seconds": round(time.perf_counter() - began, 1),
        "utterances": lines,
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="measure.py",
        description="Measure WavCube-nano: reconstruction by both stages, and linear probes of phones and speakers.",
        epilog="A model is the folder of a training run, whose newest checkpoint is taken, or a native model folder.",
    )
    add = parser.add_argument
    add("--corpus", type=Path, required=True, metavar="CORPUS", help="what corpus.py made")
    add("--stage1", type=Path, required=True, metavar="MODEL", help="the model of stage 1")
    add("--stage2", type=Path, required=True, metavar="MODEL", help="the model of stage 2")
    add("--no-anchoring", type=Path, metavar="MODEL", help="a stage 2 that was trained without the anchoring loss")
    add("--teacher", type=Path, metavar="FOLDER", help="the frozen encoder (default: that of stage 1)")
    add("--recordings", type=Path, metavar="FOLDER", help="real speech to measure on, directly in this folder")
    add("--examples", type=Path, metavar="FOLDER", help="write some reconstructions there, with their originals")
    add("--quick", action="store_true", help="measure next to nothing, to see whether it works")
    add("--out", type=Path, required=True, metavar="OUT.json", help="the numbers; OUT.png is drawn beside them")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.out.suffix != ".json":
        parser.error(f"--out must be the name of a .json file, got {arguments.out}")
    try:
        # Before minutes of work, not after them.
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        import matplotlib  # noqa: F401

        results = measure(arguments)
        with atomic_path(arguments.out) as path:
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        with atomic_path(arguments.out.with_suffix(".md")) as path:
            path.write_text(tables(results) + "\n", encoding="utf-8")
        draw(arguments.out.with_suffix(".png"), results)
    except ModuleNotFoundError as error:
        print(
            f"measure.py: error: {error.name} is missing; from a clone: pip install '.[eval]'",
            file=sys.stderr,
        )
        return 2
    except (InputError, AudioError, CheckpointError, ImportError, OSError) as error:
        print(f"measure.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
