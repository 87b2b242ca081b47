"""UTMOS, speaker similarity and word errors: metrics by large networks, which each download one when first used.

All three are called with a reference and an estimate (T,) and their sample rate, like the metrics beside them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from wavcube_plugins.audio import resample
from wavcube_plugins.evaluation.metrics import MetricError

_RATE = 16000


class UTMOS:
    """Predicted naturalness of the estimate, 1 … 5 (Saeki et al. 2022), by SpeechMOS's strong learner.

    Raises:
        MetricError: torch.hub cannot download `tarepan/SpeechMOS:v1.2.0` (about 400 MB).
    """

    def __init__(self):
        self._predictor = None

    def __call__(self, reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
        if self._predictor is None:
            self._predictor = _download(
                "UTMOS",
                "tarepan/SpeechMOS:v1.2.0 and its weights from GitHub",
                lambda: torch.hub.load("tarepan/SpeechMOS:v1.2.0", "utmos22_strong", trust_repo=True).eval(),
            )
        with torch.inference_mode():
            return float(self._predictor(estimate[None].float().cpu(), sample_rate))


class SpeakerSimilarity:
    """Cosine of the two speakers' embeddings, -1 … 1, by SpeechBrain's ECAPA-TDNN.

    The paper's SIM comes from another network (WavLM-Large fine-tuned for verification); compare values of one only.

    Raises:
        MetricError: `speechbrain/spkrec-ecapa-voxceleb` (about 90 MB) cannot be downloaded from the Hugging Face hub.
        ImportError: SpeechBrain is missing.
    """

    def __init__(self):
        self._encoder = None

    def __call__(self, reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
        if self._encoder is None:
            try:
                from speechbrain.inference.speaker import EncoderClassifier
            except ImportError as error:
                raise ImportError(
                    "speaker similarity needs SpeechBrain; from a clone: pip install '.[speechbrain]'"
                ) from error
            name = "speechbrain/spkrec-ecapa-voxceleb"
            self._encoder = _download(
                "speaker similarity", f"{name} from the Hugging Face hub", lambda: EncoderClassifier.from_hparams(name)
            )
        with torch.inference_mode():
            first, second = (
                self._encoder.encode_batch(resample(waveform.float().cpu(), sample_rate, _RATE)[None])[0, 0]
                for waveform in (reference, estimate)
            )
        return float(F.cosine_similarity(first, second, dim=0))


class WordErrors:
    """Character-greedy word error rate of the estimate against what the same recogniser hears in the reference.

    The recogniser is torchaudio's wav2vec 2.0 Base, fine-tuned on 960 h. Without transcripts this measures what the
    reconstruction changed, not what the recogniser gets wrong anyway.

    Raises:
        MetricError: the recogniser (about 360 MB) cannot be downloaded, or it hears no word in the reference.
    """

    def __init__(self):
        self._recogniser = None

    def __call__(self, reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
        bundle = torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H
        if self._recogniser is None:
            self._recogniser = _download(
                "WER", "WAV2VEC2_ASR_BASE_960H from download.pytorch.org", lambda: bundle.get_model().eval()
            )
        labels = bundle.get_labels()
        words = []
        for waveform in (reference, estimate):
            with torch.inference_mode():
                scores, _ = self._recogniser(resample(waveform.float().cpu(), sample_rate, _RATE)[None])
            best = torch.unique_consecutive(scores[0].argmax(-1)).tolist()
            words.append("".join(labels[index] for index in best if index).replace("|", " ").split())
        if not words[0]:
            raise MetricError("WER: the recogniser hears no word in the reference")
        return torchaudio.functional.edit_distance(words[0], words[1]) / len(words[0])


def _download(metric: str, what: str, load):
    try:
        return load()
    except Exception as error:  # networks fail in ways that nothing lists
        raise MetricError(f"{metric} needs {what}, which could not be loaded: {error}") from error
