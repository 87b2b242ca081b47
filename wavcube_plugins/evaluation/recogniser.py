"""The project's own phone recogniser, to score synthesised speech without a network and without anybody's weights.

>>> recogniser = load_recogniser()                          # trains itself once, in minutes, and stays on disk
>>> recogniser(waveform)                                    # (T,) at 16 kHz
('Y', 'UH', 'AH', 'F', 'R', 'EH', 'N', 'D', …)
>>> recogniser.error_rate([(waveform, phones), …])

A small recurrent network reads the last layer of the packaged teacher and names the phone of every frame; runs of one
phone are one phone. It is trained on synthesised sentences with exact times (`minidata`, task `read`), as they are and
after their way through WavCube-nano and through a mel spectrogram and Griffin-Lim, so that it hears neither as strange.
It knows espeak-ng's voices and is of no use for others.
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from wavcube_plugins.audio import read_audio
from wavcube_plugins.checkpoints import ASSETS, load_model
from wavcube_plugins.checkpoints.backbones import load_backbone
from wavcube_plugins.evaluation.probes import collapse, frame_labels
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.lengths import check_waveforms
from wavcube_plugins.models.mel import mel_spectrogram, mel_to_waveform
from wavcube_plugins.models.wavcube import normalise
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.synthetic.speech import PHONES, SILENCE

SAMPLE_RATE = 16000
_INDEX = {phone: index for index, phone in enumerate(PHONES)}
_HIDDEN = 96
_BATCH, _RATE = 16, 3e-3
# To be raised when anything here changes that makes another recogniser.
_VERSION = "1"


class PhoneRecogniser:
    """Names the phones of a waveform.

    Args:
        encoder: What turns waveforms into features.

    Attributes:
        error_rates: Phone error rate on held-out sentences, 0 … 1, by what they went through: nothing ("speech"),
            WavCube-nano ("latent"), or a mel spectrogram and Griffin-Lim ("mel").
    """

    def __init__(self, encoder: WavLM):
        self.encoder = encoder.eval()
        self.head = _Head(encoder.config.hidden_dim)
        self.error_rates: dict[str, float] = {}

    @torch.no_grad()
    def features(self, waveform: Tensor) -> Tensor:
        """Return the encoder's last layer (L, C) for a waveform (T,)."""
        check_waveforms(waveform[None], None)
        return self.encoder(normalise(waveform[None]))[0]

    def __call__(self, waveform: Tensor) -> tuple[str, ...]:
        """Return the phones of a waveform (T,) at 16 kHz, without silences.

        Raises:
            ValueError: an empty waveform, or one with NaN or infinite samples.
        """
        return self.phones(self.features(waveform))

    @torch.no_grad()
    def phones(self, features: Tensor) -> tuple[str, ...]:
        """Return the phones that `features` (L, C) show."""
        found = self.head(features[None])[0].argmax(-1).tolist()
        return tuple(PHONES[label] for label in collapse(found, silence=_INDEX[SILENCE]))

    def error_rate(self, pairs: Iterable[tuple[Tensor, Sequence[str]]]) -> float:
        """Return the phone error rate of waveforms (T,) against what they should say.

        Args:
            pairs: Waveforms, and their phones; silences among these are passed over.

        Returns:
            Substitutions, insertions and deletions over the phones of the reference; may exceed 1.

        Raises:
            ValueError: no phones in any of the references.
        """
        return _rate((self(waveform), phones) for waveform, phones in pairs)


def load_recogniser(
    cache: str | os.PathLike | None = None,
    *,
    utterances: int = 200,
    epochs: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> PhoneRecogniser:
    """Load the recogniser, or train it if this is the first time.

    Args:
        cache: The folder it is kept in; `wavcube_plugins` in the user's cache folder if not given. The file's name
            depends on the arguments below and on the weights of teacher and nano, so new ones make a new recogniser.
        utterances: Sentences to train on.
        epochs: Times that each of them is seen, in each of three forms.
        seed: Of the sentences and the training.
        progress: Show bars.

    Returns:
        The recogniser, with its measured error rates.

    Raises:
        ImportError: it must be trained and espeak-ng's library is missing; the message names the command.
    """
    folder = _cache_folder() if cache is None else Path(cache)
    recogniser = PhoneRecogniser(load_backbone("nano"))
    path = folder / f"phone_recogniser_{_key(utterances, epochs, seed)}.safetensors"
    if not path.is_file():
        _train(recogniser, utterances, epochs, seed, progress)
        rates = {name: str(rate) for name, rate in recogniser.error_rates.items()}
        with atomic_path(path) as temporary:
            save_file(recogniser.head.state_dict(), temporary, metadata=rates)
    with safe_open(path, "pt") as file:
        recogniser.head.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        recogniser.error_rates = {name: float(rate) for name, rate in (file.metadata() or {}).items()}
    recogniser.head.eval()
    return recogniser


class _Head(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 128)
        self.dropout = nn.Dropout(0.2)
        self.recurrent = nn.GRU(128, _HIDDEN, bidirectional=True, batch_first=True)
        self.out = nn.Linear(2 * _HIDDEN, len(PHONES))

    def forward(self, features: Tensor) -> Tensor:
        """Turn the encoder's features (B, L, C) into scores of every phone (B, L, K)."""
        hidden = F.gelu(self.project(self.dropout(self.norm(features))))
        return self.out(self.dropout(self.recurrent(hidden)[0]))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wavcube_plugins"


def _key(*settings: object) -> str:
    digest = hashlib.sha256(repr((_VERSION, *settings)).encode())
    for folder in (ASSETS / "nano" / "teacher", ASSETS / "nano"):
        digest.update((folder / "model.safetensors").read_bytes())
    return digest.hexdigest()[:12]


def _train(recogniser: PhoneRecogniser, utterances: int, epochs: int, seed: int, progress: bool) -> None:
    from wavcube_plugins.synthetic.mini import make_mini, read_mini

    held_out = max(10, utterances // 5)
    with tempfile.TemporaryDirectory(prefix="wavcube_recogniser_") as folder:
        make_mini(folder, "read", {"train": utterances, "test": held_out}, seed=seed, progress=progress)
        train, test = (
            _prepare(recogniser, Path(folder), read_mini(folder, split), progress) for split in ("train", "test")
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _fit(recogniser.head, [(features, labels) for _, features, labels, _ in train], epochs, seed, progress)
    recogniser.head.eval()
    for name in dict.fromkeys(name for name, *_ in test):
        recogniser.error_rates[name] = _rate(
            (recogniser.phones(features), phones) for kind, features, _, phones in test if kind == name
        )


def _prepare(recogniser: PhoneRecogniser, folder: Path, records: Sequence[dict], progress: bool) -> list[tuple]:
    """Return form, features (L, C), labels (L,) and phones of every sentence in every form."""
    model = load_model("nano")
    items = []
    for record in tqdm(records, desc="phone recogniser: features", unit="utterance", disable=not progress):
        waveform = read_audio(folder / record["path"], SAMPLE_RATE)
        with torch.no_grad():
            latent, lengths = model.encode(waveform[None])
            forms = {
                "speech": waveform,
                "latent": model.decode(latent, lengths)[0][0],
                "mel": mel_to_waveform(mel_spectrogram(waveform)),
            }
        for name, form in forms.items():
            features = recogniser.features(form)
            labels = torch.tensor([_INDEX[label] for label in frame_labels(record["phones"], len(features))])
            items.append((name, features, labels, [label for label, _, _ in record["phones"]]))
    return items


def _fit(head: _Head, items: list[tuple], epochs: int, seed: int, progress: bool) -> None:
    head.train()
    for module in head.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    batches = -(-len(items) // _BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=epochs * batches)
    order = random.Random(seed)
    for _ in tqdm(range(epochs), desc="phone recogniser: training", unit="epoch", disable=not progress):
        order.shuffle(items)
        for start in range(0, len(items), _BATCH):
            part = items[start : start + _BATCH]
            features = nn.utils.rnn.pad_sequence([features for features, _ in part], batch_first=True)
            labels = nn.utils.rnn.pad_sequence([labels for _, labels in part], batch_first=True, padding_value=-100)
            F.cross_entropy(head(features).transpose(1, 2), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def _rate(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> float:
    errors = count = 0
    for found, phones in pairs:
        said = collapse([_INDEX[phone] for phone in phones], silence=_INDEX[SILENCE])
        errors += torchaudio.functional.edit_distance([_INDEX[phone] for phone in found], said)
        count += len(said)
    if not count:
        raise ValueError("there are no phones to score on")
    return errors / count
