"""The objective scores of voice conversion: mel-cepstral distortion, word errors, and accepted speakers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wavcube_plugins.superb.scoring import ScoringError, mel_cepstral_distortion

# The judges of SUPERB-SG: a recogniser of the Hugging Face hub, and Resemblyzer's speaker encoder.
RECOGNISER = "facebook/wav2vec2-large-960h-lv60-self"
_NAME = re.compile(r"(?P<speaker>[A-Z0-9]+)_(?P<sentence>E\d+)")


def distortion(converted: Path, target: Path) -> dict[str, Any]:
    """Return the mean mel-cepstral distortion of converted sentences against the target speaker's own.

    Args:
        converted: A folder with SEF1_E30001.wav and so on, as s3prl writes it.
        target: The folder of the target speaker in the database.

    Raises:
        ScoringError: there is nothing to compare.
        ImportError: pyworld is missing.
    """
    from wavcube_plugins.audio import read_audio, read_info

    values, silent = [], 0
    for path, reference in _pairs(converted, target):
        rate = read_info(reference).sample_rate
        try:
            values.append(
                mel_cepstral_distortion(read_audio(reference, rate).numpy(), read_audio(path, rate).numpy(), rate)
            )
        except ScoringError:
            silent += 1  # an untrained model converts to silence
    if not values:
        raise ScoringError(f"{converted}: no sentence to compare with {target}, {silent} are silent")
    return {"mcd": float(np.mean(values)), "sentences": len(values), "silent": silent}


def _pairs(converted: Path, target: Path) -> Iterable[tuple[Path, Path]]:
    for path in sorted(converted.glob("*.wav")):
        found = _NAME.fullmatch(path.stem)
        reference = target / f"{found['sentence']}.wav" if found else None
        if reference is not None and reference.is_file():
            yield path, reference


@dataclass(frozen=True)
class Judges:
    """The recogniser and the speaker encoder of SUPERB-SG's protocol.

    Args:
        texts: The text of each sentence, by its number ("30001").
        threshold: The least cosine similarity of two utterances of one speaker.
    """

    texts: dict[str, str]
    threshold: float

    def measure(self, converted: Path, target: Path) -> dict[str, float]:
        """Return the word error rate and the share of sentences accepted as the target speaker, both in percent."""
        import editdistance

        errors = words = accepted = total = 0
        recognise, embed = _recogniser(), _encoder()
        for path, reference in _pairs(converted, target):
            reference_words = normalised(self.texts[reference.stem.lstrip("E")])
            errors += editdistance.eval(normalised(recognise(path)), reference_words)
            words += len(reference_words)
            accepted += float(embed(path) @ embed(reference)) > self.threshold
            total += 1
        return {"wer": 100 * errors / max(words, 1), "asv": 100 * accepted / max(total, 1)}


def find_judges(data_root: Path) -> Judges | None:
    """Return the judges of the protocol if they are on this machine, else None."""
    from importlib.util import find_spec

    prompts = data_root / "prompts" / "Eng_transcriptions.txt"
    if find_spec("resemblyzer") is None or find_spec("transformers") is None or not prompts.is_file():
        return None
    try:
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(RECOGNISER, "config.json"), str):
            return None
    except ImportError:
        return None
    lines = (line.split(" ", 1) for line in prompts.read_text(encoding="utf-8").splitlines() if " " in line)
    return Judges(dict(lines), threshold(data_root))


def threshold(data_root: Path) -> float:
    """Return the similarity with equal error rates for pairs of one speaker and of two."""
    embed = _encoder()
    speakers = [path for path in sorted(data_root.iterdir()) if re.fullmatch(r"[ST]E[FM]\d", path.name)]
    vectors = {path.name: np.stack([embed(wav) for wav in sorted(path.glob("E3*.wav"))]) for path in speakers}
    same = np.concatenate([(one @ one.T).ravel() for one in vectors.values()])
    different = np.concatenate(
        [(one @ other.T).ravel() for a, one in vectors.items() for b, other in vectors.items() if a != b]
    )
    return equal_error_threshold(same, different)


def equal_error_threshold(same: np.ndarray, different: np.ndarray) -> float:
    """Return the threshold where the share of same pairs below it is closest to that of different pairs above it."""
    candidates = np.unique(np.concatenate([same, different]))
    refused = np.searchsorted(np.sort(same), candidates, side="left") / len(same)
    accepted = 1 - np.searchsorted(np.sort(different), candidates, side="left") / len(different)
    return float(candidates[np.argmin(np.abs(refused - accepted))])


def normalised(text: str) -> list[str]:
    """Return the words of a text in upper case, without punctuation."""
    return re.sub(r"[^\w\s]", "", text.upper()).split()


def _recogniser():
    import torch
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

    from wavcube_plugins.audio import read_audio

    processor: Any = Wav2Vec2Processor.from_pretrained(RECOGNISER)
    model = Wav2Vec2ForCTC.from_pretrained(RECOGNISER).eval()

    def recognise(path: Path) -> str:
        inputs: Any = processor(read_audio(path, 16000).numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            return processor.batch_decode(model(**inputs).logits.argmax(dim=-1))[0]

    return recognise


def _encoder():
    from resemblyzer import VoiceEncoder, preprocess_wav  # pyright: ignore[reportMissingImports]

    encoder = VoiceEncoder(verbose=False)

    def embed(path: Path) -> np.ndarray:
        vector = np.asarray(encoder.embed_utterance(preprocess_wav(path)))
        return vector / np.linalg.norm(vector)

    return embed
