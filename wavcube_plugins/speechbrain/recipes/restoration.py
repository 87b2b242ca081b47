"""What enhancement and separation share: aligned views of mixtures and sources, scores, and the inference folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from wavcube_plugins.audio import write_audio
from wavcube_plugins.evaluation import MetricError, compare, si_sdr
from wavcube_plugins.speechbrain.lengths import absolute_lengths, frame_counts
from wavcube_plugins.speechbrain.lobe import WavCube
from wavcube_plugins.speechbrain.recipes.batches import crop
from wavcube_plugins.speechbrain.recipes.brain import RecipeBrain
from wavcube_plugins.speechbrain.recipes.data import DataError, Speech
from wavcube_plugins.speechbrain.recipes.export import ON_WAVCUBE, lobe_yaml, object_yaml, write_inference

_METRICS = ("si_sdr", "pesq", "stoi")


def check_metrics() -> None:
    """Check that the packages for scores are installed.

    Raises:
        ImportError: one is missing; the message names the command that installs it.
    """
    for package in ("pesq", "pystoi"):
        if find_spec(package) is None:
            raise ImportError(f"the scores of this recipe need {package}; from a clone: pip install '.[eval]'")


def make_dataset(manifest: dict[str, dict], split: str, speech: Speech, targets: Sequence[str]) -> DynamicItemDataset:
    """Return a data set with the waveforms and, where they are cached, the latents of mixtures and sources.

    Args:
        manifest: Entries by id, with the mixture under `wav`.
        split: Name of the manifest.
        speech: Reads audio and the cache.
        targets: Keys of the sources.

    Returns:
        A data set with the items `wav_sig` and `<target>_sig`, (T,), and with a cache `wav_latent` and
        `<target>_latent`, (L, D).
    """
    dataset = DynamicItemDataset(manifest)
    keys = ["wav", *targets]
    dataset.add_dynamic_item(speech.read, "wav", "wav_sig")
    for key in targets:
        dataset.add_dynamic_item(partial(_read_source, speech, split, key), ("id", key, "wav_sig"), f"{key}_sig")
    outputs = ["id", *(f"{key}_sig" for key in keys)]
    if speech.cache is not None:
        dataset.add_dynamic_item(partial(speech.latent, "wav", split), "id", "wav_latent")
        for key in targets:
            function = partial(_read_latent, speech, split, key)
            dataset.add_dynamic_item(function, ("id", "wav_latent"), f"{key}_latent")
        outputs += [f"{key}_latent" for key in keys]
    dataset.set_output_keys(outputs)
    return dataset


def _read_source(speech: Speech, split: str, key: str, name: str, path: str, mixture: Tensor) -> Tensor:
    """Read a source (T,) of a mixture (T,); resampling and coding may change the ends of files a little."""
    source, hop = speech.read(path), speech.lobe.hop_length
    missing = len(mixture) - len(source)
    if abs(missing) >= hop:
        raise DataError(
            f"{split}.json: {key!r} of the entry {name!r} has {len(source)} samples, but 'wav' has {len(mixture)}; "
            f"differences up to {hop - 1} are cut or padded"
        )
    return F.pad(source, (0, missing))


def _read_latent(speech: Speech, split: str, key: str, name: str, mixture: Tensor) -> Tensor:
    """Return the cached latent (L, D) of a source, its last frame repeated if the mixture's has one more."""
    latent = speech.latent(key, split, name)
    return latent[torch.arange(len(mixture)).clamp(max=len(latent) - 1)]


@dataclass
class Views:
    """Mixtures and sources, as waveforms and as latents, cut at the same places.

    Args:
        inputs: What the model takes: waveforms of mixtures (B, T), or their cached latents (B, L, D).
        lens: (B,) relative lengths of the inputs.
        frames: (B,) counts of latent frames.
        lengths: (B,) in samples.
        mixture: (B, T).
        sources: (B, S, T).
        targets: Latents of the sources, (B, S, L, D).
    """

    inputs: Tensor
    lens: Tensor
    frames: Tensor
    lengths: Tensor
    mixture: Tensor
    sources: Tensor
    targets: Tensor


def make_views(batch: Any, targets: Sequence[str], lobe: WavCube, crop_seconds: float | None) -> Views:
    """Return the views of a batch of `make_dataset`.

    Args:
        batch: On the device of the lobe.
        targets: Keys of the sources.
        lobe: Encodes what is not cached.
        crop_seconds: Length of random pieces; None keeps utterances whole.
    """
    keys, hop = ["wav", *targets], lobe.hop_length
    waves = [batch[f"{key}_sig"].data for key in keys]
    pieces = 0 if crop_seconds is None else round(crop_seconds * lobe.sample_rate) // hop
    if not hasattr(batch, "wav_latent"):
        lens = batch["wav_sig"].lengths
        if pieces:
            waves, lens = crop(waves, lens, pieces * hop, [1] * len(keys))
        lengths, frames = absolute_lengths(lens, waves[0]), lobe.frame_counts(waves[0], lens)
        latents = [lobe.encode(wave, lens)[0] for wave in waves[1:]]
        inputs = waves[0]
    else:
        latents = [batch[f"{key}_latent"].data for key in keys]
        lens, lengths = batch["wav_latent"].lengths, absolute_lengths(batch["wav_sig"].lengths, waves[0])
        if pieces:
            views, lens = crop([*latents, *waves], lens, pieces, [1] * len(keys) + [hop] * len(keys))
            latents, waves = views[: len(keys)], views[len(keys) :]
        inputs, *latents = latents
        frames = frame_counts(lens, inputs.shape[1])
        lens = frames / inputs.shape[1]
        if pieces:
            lengths = frames * hop
    assert lengths is not None
    return Views(inputs, lens, frames, lengths, waves[0], torch.stack(waves[1:], 1), torch.stack(latents, 1))


class SourceStats:
    """Means of SI-SDR, PESQ and STOI over all sources, and examples to listen to.

    Args:
        sample_rate: In Hz.
        examples: Number of utterances to write.
        folder: Where to write them; None computes SI-SDR alone and writes nothing, as for validation.
    """

    def __init__(self, sample_rate: int, examples: int = 0, folder: Path | None = None):
        self.sample_rate, self.examples, self.folder = sample_rate, examples, folder
        self.values: dict[str, list[float]] = {}
        self.count = 0

    def append(self, ids: Sequence[str], views: Views, outputs: Mapping[str, Tensor]) -> None:
        """Score outputs (B, S, T) by kind; the mixture itself is scored as `input`."""
        outputs = {"input": views.mixture[:, None].expand_as(views.sources), **outputs}
        for row, name in enumerate(ids):
            length = int(views.lengths[row])
            for number in range(views.sources.shape[1]):
                source = views.sources[row, number, :length].float().cpu()
                for kind, waveforms in outputs.items():
                    self._score(f"{name}.{kind}{number + 1}", kind, source, waveforms[row, number, :length])
            self.count += 1

    def _score(self, name: str, kind: str, source: Tensor, estimate: Tensor) -> None:
        estimate = estimate.float().cpu()
        for metric, value in self._measure(source, estimate).items():
            if isinstance(value, float):
                self.values.setdefault(f"{metric}_{kind}", []).append(value)
        if self.folder is not None and self.count < self.examples and if_main_process():
            # Louder than full scale would be clipped.
            write_audio(self.folder / f"{name}.wav", estimate / max(1.0, float(estimate.abs().max())), self.sample_rate)

    def _measure(self, source: Tensor, estimate: Tensor) -> dict[str, Any]:
        if self.folder is None:
            try:
                return {"si_sdr": float(si_sdr(source, estimate, self.sample_rate))}
            except MetricError:  # silence
                return {}
        values = compare(source, estimate, self.sample_rate).to_dict()
        return {metric: values.get(metric) for metric in _METRICS}

    def summarize(self) -> dict[str, float]:
        """Return the mean of each metric and kind of output, `si_sdr_masks` for instance."""
        return {name: sum(values) / len(values) for name, values in self.values.items()}


def write_restorer(folder: Path, brain: RecipeBrain, head: Mapping[str, Any], sources: int, name: str) -> None:
    """Write the folder for inference, with a `WaveformRestorer`.

    Args:
        folder: Where to write.
        brain: With the module `model`.
        head: Setting of the head, as `read_settings` returns it.
        sources: Number of sources.
        name: Key of the restorer.
    """
    lobe, model = brain.hparams.wavcube, brain.module("model")
    output = "masks" if "masks" in model.head.outputs else "latents"
    write_inference(
        folder,
        {
            "wavcube": lobe_yaml(lobe, decoder=True),
            "head": object_yaml(head, in_dim=lobe.output_dim, out_dim=sources),
            "model": ON_WAVCUBE,
            "output": f"{output}   # or latents, which the decoder makes audible",
            name: "!new:wavcube_plugins.speechbrain.modules.WaveformRestorer\n"
            "    model: !ref <model>\n    output: !ref <output>",
        },
        {"model": model},
        f"modules:\n    {name}: !ref <{name}>\n",
    )
