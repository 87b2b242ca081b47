"""What a person sees of a training run: numbers, sounds and pictures for TensorBoard, and the numbers as text.

A run's folder gets

    tensorboard/          scalars while training; audio, pictures and scores at each validation
    progress.jsonl        the same numbers, a line each
    examples/             the fixed utterances of validation: the original, the newest reconstruction, and the picture
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from wavcube_plugins.audio import write_audio
from wavcube_plugins.evaluation import MetricError, pesq, save_comparison, stoi
from wavcube_plugins.evaluation.judges import DNSMOS, UTMOS, VoiceSimilarity, WordErrors
from wavcube_plugins.evaluation.plots import comparison_figure

# What the progress bar has room for.
_SHORT = {"mel": "mel", "semantic": "sem", "disc_total": "disc", "gen_total": "total"}


class Report:
    """Writes what a run does into its folder.

    Args:
        folder: The run's folder.
        sample_rate: In Hz.
        settings: Which of `dnsmos`, `voice_similarity` and `utmos` to measure too, and for the words the Whisper that
            `wer` names.

    Raises:
        ImportError: one of these three, or TensorBoard, is not installed; the message names the command that helps.
    """

    def __init__(self, folder: str | os.PathLike, sample_rate: int, settings: Mapping[str, object] | None = None):
        settings = settings or {}
        self.folder, self.sample_rate = Path(folder), sample_rate
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "training writes TensorBoard files; from a clone: pip install '.[speechbrain]'"
            ) from error
        self._writer = SummaryWriter(str(self.folder / "tensorboard"))
        self._lines = self.folder / "progress.jsonl"
        if self._lines.is_file() and self._lines.read_bytes()[-1:] not in (b"", b"\n"):
            # A killed run left half a line, which must not take the next one with it.
            with open(self._lines, "a", encoding="utf-8") as file:
                file.write("\n")
        self._metrics: dict[str, Callable[[Tensor, Tensor, int], float]] = {"STOI": stoi, "PESQ-WB": pesq}
        judges = {"dnsmos": ("DNSMOS", DNSMOS), "voice_similarity": ("voice similarity", VoiceSimilarity)}
        for wanted, (name, judge) in {**judges, "utmos": ("UTMOS", UTMOS)}.items():
            if settings.get(wanted):
                self._metrics[name] = judge()
        if settings.get("wer"):
            self._metrics["WER"] = WordErrors(str(settings["wer"]))

    @staticmethod
    def shorten(values: Mapping[str, float]) -> dict[str, str]:
        """Return the few numbers that a progress bar has room for."""
        return {short: f"{values[name]:.3g}" for name, short in _SHORT.items() if name in values}

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Note the numbers of a training step, by name."""
        self._scalars("train", step, values)
        self._line({"step": step, **values})

    def validation(
        self, step: int, losses: Mapping[str, float], examples: Sequence[tuple[str, Tensor, Tensor]]
    ) -> dict[str, float]:
        """Note what validation found.

        Args:
            step: Training steps so far.
            losses: Averages over the validation set.
            examples: Name, original and reconstruction (T,) of the fixed utterances.

        Returns:
            The losses, and the means of the metrics over the examples.
        """
        found: dict[str, list[float]] = {name: [] for name in self._metrics}
        for index, (name, reference, estimate) in enumerate(examples):
            if not torch.isfinite(estimate).all():
                warnings.warn(f"{name}: the reconstruction has NaN or infinite samples", stacklevel=2)
                continue
            estimate = estimate.clamp(-1, 1)
            for metric_name, metric in list(self._metrics.items()):
                try:
                    found[metric_name].append(metric(reference, estimate, self.sample_rate))
                except MetricError as error:
                    warnings.warn(f"{name}: {error}", stacklevel=2)
                except ImportError as error:
                    warnings.warn(f"{metric_name} is not measured: {error}", stacklevel=2)
                    del self._metrics[metric_name]
            self._example(step, f"{index}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[-60:]}", name, reference, estimate)
        scores = {name: sum(values) / len(values) for name, values in found.items() if values}
        self._scalars("valid", step, {**losses, **scores})
        self._line({"step": step, **{f"valid {name}": value for name, value in {**losses, **scores}.items()}})
        self._writer.flush()
        return {**losses, **scores}

    def close(self) -> None:
        """Write what is left to be written."""
        self._writer.close()

    def _example(self, step: int, file_name: str, name: str, reference: Tensor, estimate: Tensor) -> None:
        folder = self.folder / "examples"
        folder.mkdir(parents=True, exist_ok=True)
        for kind, waveform in (("original", reference), ("reconstruction", estimate)):
            write_audio(folder / f"{file_name}.{kind}.flac", waveform, self.sample_rate)
            self._writer.add_audio(f"{file_name}/{kind}", waveform[None], step, self.sample_rate)
        try:
            figure = comparison_figure(reference, estimate, self.sample_rate, title=f"{name}, step {step:,}")
        except ImportError as error:
            warnings.warn(f"no pictures are drawn: {error}", stacklevel=3)
            return
        self._writer.add_figure(file_name, figure, step)
        save_comparison(
            folder / f"{file_name}.png", reference, estimate, self.sample_rate, title=f"{name}, step {step:,}"
        )

    def _scalars(self, part: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{name}/{part}" if "/" not in name else name, value, step)

    def _line(self, values: Mapping[str, float]) -> None:
        # Significant digits, not decimals: learning rates are small.
        plain = {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in values.items()}
        plain = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        with open(self._lines, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")
