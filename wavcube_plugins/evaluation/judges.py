"""Judges of speech as a listener would hear it: naturalness, the voice and the words, by networks nobody here trained.

Each is called with a reference and an estimate (T,) and their sample rate, like the metrics beside them. The weights of
DNSMOS and of the voices' embeddings come with their packages; UTMOS and Whisper are downloaded when they are asked for.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from wavcube_plugins.audio import resample
from wavcube_plugins.evaluation.metrics import MetricError

Judge = Callable[[Tensor, Tensor, int], float]

_RATE = 16000
# Silence around an utterance, without which Whisper may miss its first or last word, in seconds.
_PAUSE = 0.25


def installed_judges(whisper: str | os.PathLike | None = None) -> dict[str, Judge]:
    """Return the judges that can be asked here, by name: `dnsmos`, `voice` and, if a Whisper is named, `wer`.

    Args:
        whisper: For the words, as `WordErrors` takes it; None leaves them out.
    """
    judges: dict[str, Judge] = {}
    if find_spec("speechmos"):
        judges["dnsmos"] = DNSMOS()
    if find_spec("resemblyzer"):
        judges["voice"] = VoiceSimilarity()
    if whisper is not None:
        judges["wer"] = WordErrors(whisper)
    return judges


class DNSMOS:
    """Predicted quality of the estimate, 1 … 5 (Reddy et al. 2022, DNSMOS P.835, overall), by speechmos.

    Raises:
        MetricError: the estimate is silent.
        ImportError: speechmos is missing.
    """

    def __call__(self, reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
        wave = _mono(estimate, sample_rate)
        if not wave.any():
            raise MetricError("DNSMOS: the estimate is silent")
        scores: Any = self._package().run(wave / max(1.0, 1.001 * np.abs(wave).max()), _RATE)
        return float(scores["ovrl_mos"])

    @staticmethod
    def _package():
        try:
            from speechmos import dnsmos
        except ImportError as error:
            raise _missing("DNSMOS", "speechmos") from error
        return dnsmos


class VoiceSimilarity:
    """Cosine of the two voices' embeddings, -1 … 1, by Resemblyzer: one person's recordings have about 0.83, two 0.53.

    The paper's SIM comes from another network (WavLM-Large fine-tuned for verification); compare values of one only.

    Raises:
        MetricError: no voice is found in one of the two.
        ImportError: Resemblyzer is missing.
    """

    def __init__(self):
        self._encoder = None

    def __call__(self, reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
        pair = (("reference", reference), ("estimate", estimate))
        first, second = (self._embed(name, _mono(wave, sample_rate)) for name, wave in pair)
        return float(first @ second)

    def _embed(self, name: str, wave: np.ndarray) -> np.ndarray:
        try:
            # It prints how long loading took.
            with contextlib.redirect_stdout(io.StringIO()):
                from resemblyzer import VoiceEncoder, preprocess_wav

                self._encoder = self._encoder or VoiceEncoder("cpu", verbose=False)
        except ImportError as error:
            raise _missing("voice similarity", "Resemblyzer") from error
        # Without pauses; the loudness is set to one level.
        speech = preprocess_wav(wave, source_sr=_RATE) if wave.any() else wave[:0]
        if not len(speech):
            raise MetricError(f"voice similarity: there is no voice in the {name}")
        return np.asarray(self._encoder.embed_utterance(speech))


class WordErrors:
    """Word error rate of the estimate against what the same Whisper hears in the reference, by faster-whisper.

    Without transcripts this measures what the reconstruction changed, not what the recogniser gets wrong anyway.

    Args:
        whisper: A folder as faster-whisper reads it, or the name of one on the Hugging Face hub, such as `base`, which
            is downloaded when it is first used.
        language: Of the speech.

    Raises:
        MetricError: no such Whisper, or it hears no word in the reference.
        ImportError: faster-whisper is missing.
    """

    def __init__(self, whisper: str | os.PathLike = "base", *, language: str = "en"):
        self._source, self._language = os.fspath(whisper), language
        self._whisper = None

    def __call__(self, reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
        expected, heard = (words(self.hear(wave, sample_rate)) for wave in (reference, estimate))
        if not expected:
            raise MetricError("WER: Whisper hears no word in the reference")
        return torchaudio.functional.edit_distance(expected, heard) / len(expected)

    def hear(self, waveform: Tensor, sample_rate: int) -> str:
        """Return what Whisper hears in a waveform (T,)."""
        if self._whisper is None:
            try:
                from faster_whisper import WhisperModel
            except ImportError as error:
                raise _missing("WER", "faster-whisper") from error
            what = f"{self._source}, a folder or hub name of a Whisper"
            self._whisper = _load(
                "WER", what, lambda: WhisperModel(self._source, device="cpu", compute_type="int8", cpu_threads=1)
            )
        pause = np.zeros(int(_PAUSE * _RATE), np.float32)
        parts, _ = self._whisper.transcribe(
            np.concatenate([pause, _mono(waveform, sample_rate), pause]),
            language=self._language,
            temperature=0,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        return " ".join(part.text.strip() for part in parts)


class UTMOS:
    """Predicted naturalness of the estimate, 1 … 5 (Saeki et al. 2022), by SpeechMOS's strong learner.

    Raises:
        MetricError: torch.hub cannot download `tarepan/SpeechMOS:v1.2.0` (about 400 MB).
    """

    def __init__(self):
        self._predictor = None

    def __call__(self, reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
        if self._predictor is None:
            self._predictor = _load(
                "UTMOS",
                "tarepan/SpeechMOS:v1.2.0 and its weights from GitHub",
                lambda: cast(nn.Module, torch.hub.load("tarepan/SpeechMOS:v1.2.0", "utmos22_strong", trust_repo=True)),
            )
        with torch.inference_mode():
            self._predictor.eval()
            return float(self._predictor(estimate[None].float().cpu(), sample_rate))


def words(text: str) -> list[str]:
    """Return the words of a text in small letters, without punctuation."""
    return re.sub(r"[^\w' ]", " ", text.lower().replace("’", "'").replace("-", " ")).split()


def _mono(waveform: Tensor, sample_rate: int) -> np.ndarray:
    return resample(waveform.detach().float().cpu(), sample_rate, _RATE).numpy()


def _missing(metric: str, package: str) -> ImportError:
    return ImportError(f"{metric} needs {package}; from a clone: pip install '.[eval]'")


def _load(metric: str, what: str, load):
    try:
        return load()
    except Exception as error:  # networks fail in ways that nothing lists
        raise MetricError(f"{metric} needs {what}, which could not be loaded: {error}") from error
