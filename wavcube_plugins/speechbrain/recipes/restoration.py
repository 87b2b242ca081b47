"""Enhancement and separation as recipes: they differ in the number of sources and in where these lie."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import ClassVar

import speechbrain as sb
import torch
import torch.nn.functional as F
from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from wavcube_plugins.audio import write_audio
from wavcube_plugins.evaluation import MetricError, compare, si_sdr
from wavcube_plugins.heads.losses import best_order, pairwise_latent_loss, pairwise_snr_loss
from wavcube_plugins.heads.restoration import apply_masks
from wavcube_plugins.speechbrain.lengths import absolute_lengths
from wavcube_plugins.speechbrain.modules import OnWavCube, decode_sources
from wavcube_plugins.speechbrain.recipes.brain import ON_WAVCUBE, Recipe, crop, head_yaml
from wavcube_plugins.speechbrain.recipes.data import DataError, make_dataset

_METRICS = ("si_sdr", "pesq", "stoi")


class RestorationRecipe(Recipe):
    """Maps the latent of disturbed speech to that of each source, with masks beside it.

    A subclass names `targets`, the audio keys of the sources, and `model_name`, the key of the folder for inference.
    """

    targets: ClassVar[tuple[str, ...]] = ()
    model_name: ClassVar[str] = ""
    monitor = ("loss", "min")

    def build(self):
        for package in ("pesq", "pystoi"):
            if find_spec(package) is None:
                raise ImportError(f"the scores of this recipe need {package}; from a clone: pip install '.[eval]'")
        if not self.lobe.freeze or self.lobe.features != "latent":
            raise DataError("this recipe maps the latent of a frozen model: it needs freeze: True, features: latent")
        self.head = self.settings["head"](self.lobe.output_dim, len(self.targets))
        self.weights = {
            name: self.settings[f"{name}_weight"]
            for name in ("latents", "masks")
            if getattr(self.head, f"to_{name}") is not None
        }
        return {"model": OnWavCube(self.lobe, self.head)}

    def dataset(self, split, manifest):
        items = [
            (partial(self._source, split, key), ("id", key, "wav_signal"), f"{key}_signal") for key in self.targets
        ]
        cached = self.speech.cache is not None
        if cached:
            items += [(partial(self._latent, split, key), ("id", "wav_input"), f"{key}_input") for key in self.targets]
        features = ["wav"] if cached else []
        return make_dataset(manifest, split, self.speech, waveforms=["wav"], features=features, items=items)

    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        keys = ["wav", *self.targets]
        waves = [getattr(batch, f"{key}_signal").data for key in keys]
        lens = batch.wav_signal.lengths
        hop, frames = self.lobe.hop_length, round(self.settings["crop_seconds"] * self.lobe.sample_rate)
        frames = frames // self.lobe.hop_length
        if self.speech.cache is not None:
            latents = [getattr(batch, f"{key}_input").data for key in keys]
            counts = (batch.wav_input.lengths * latents[0].shape[1]).round().long()
            lengths = absolute_lengths(lens, waves[0])
            if stage == sb.Stage.TRAIN:
                views, lens = crop(
                    [*latents, *waves], batch.wav_input.lengths, frames, [1] * len(keys) + [hop] * len(keys)
                )
                latents, waves = views[: len(keys)], views[len(keys) :]
                counts = (lens * latents[0].shape[1]).round().long()
                lengths = counts * hop
            lens = counts / latents[0].shape[1]
            targets = torch.stack(latents[1:], 1)
            inputs = latents[0]
        else:
            if stage == sb.Stage.TRAIN:
                waves, lens = crop(waves, lens, frames * hop, [1] * len(keys))
            lengths = absolute_lengths(lens, waves[0])
            inputs = waves[0]
            counts = self.raw["model"].frame_counts(inputs, lens)
            targets = torch.stack([self.lobe.encode(wave, lens)[0] for wave in waves[1:]], 1)
        result = self.modules.model(inputs, lens, waves[0])
        return {
            **result,
            "frames": counts,
            "lengths": lengths,
            "mixture": waves[0],
            "sources": torch.stack(waves[1:], 1),
            "targets": targets,
        }

    def compute_objectives(self, predictions, batch, stage):
        frames, lengths = predictions["frames"], predictions["lengths"]
        losses = 0.0
        if "latents" in predictions:
            loss = pairwise_latent_loss(predictions["latents"], predictions["targets"], frames)
            losses = losses + self.weights["latents"] * loss
        if "masks" in predictions:
            filtered = apply_masks(predictions["mixture"], predictions["masks"], frames)
            loss = pairwise_snr_loss(filtered, predictions["sources"], lengths)
            losses = losses + self.weights["masks"] * loss
        # One order for both, so that latent and mask of an output are of the same source.
        loss, order = best_order(losses)
        if stage != sb.Stage.TRAIN:
            outputs = {}
            if "masks" in predictions:
                outputs["masks"] = ordered(filtered, order)
            if stage == sb.Stage.TEST:
                samples = predictions["mixture"].shape[1]
                if "latents" in predictions:
                    latents = ordered(predictions["latents"], order)
                    outputs["latents"] = decode_sources(self.lobe, latents, frames, samples)
                outputs["ceiling"] = decode_sources(self.lobe, predictions["targets"], frames, samples)
            self._score(batch.id, predictions, outputs, stage)
        return loss.mean()

    def start_scores(self, stage):
        self.sums: dict[str, list[float]] = {}
        self.examples = 0

    def scores(self, stage):
        return {name: sum(values) / len(values) for name, values in self.sums.items() if values}

    def _score(self, ids, predictions: dict, outputs: dict[str, Tensor], stage) -> None:
        """Compare each output with its source; `input` is what came in, `ceiling` the clean latent, decoded."""
        outputs = {"input": predictions["mixture"][:, None].expand_as(predictions["sources"]), **outputs}
        for row, name in enumerate(ids):
            length = int(predictions["lengths"][row])
            for number in range(len(self.targets)):
                source = predictions["sources"][row, number, :length].float().cpu()
                for kind, waveforms in outputs.items():
                    estimate = waveforms[row, number, :length].float().cpu()
                    if stage == sb.Stage.VALID:
                        values = {"si_sdr": plain_si_sdr(source, estimate)}
                    else:
                        values = compare(source, estimate, self.lobe.sample_rate).to_dict()
                    for metric in _METRICS:
                        if values.get(metric) is not None:
                            self.sums.setdefault(f"{metric}_{kind}", []).append(values[metric])
                    if stage == sb.Stage.TEST and self.examples < self.settings["examples"] and if_main_process():
                        place = self.folder / "examples" / self.split / f"{name}.{kind}{number + 1}.wav"
                        write_audio(place, estimate / max(1.0, float(estimate.abs().max())), self.lobe.sample_rate)
            self.examples += 1

    def export(self, folder):
        head = self.settings["head"]
        output = "masks" if "masks" in self.weights else "latents"
        self.write_inference(
            folder,
            {
                "wavcube": self.lobe_yaml(decoder=True),
                "head": head_yaml(head, self.lobe.output_dim, len(self.targets)),
                "model": ON_WAVCUBE,
                "output": f"{output}   # or latents: what is heard is decoded then",
                self.model_name: "!new:wavcube_plugins.speechbrain.modules.WaveformRestorer\n"
                "    model: !ref <model>\n    output: !ref <output>",
            },
            {"model": self.raw["model"]},
            f"modules:\n    {self.model_name}: !ref <{self.model_name}>\n",
        )

    def _source(self, split: str, key: str, name: str, path: str, mixture: Tensor) -> Tensor:
        """Read a source (T,) of a mixture (T,); files may differ by what resampling and coding make of the ends."""
        source = self.speech.read(path)
        missing = len(mixture) - len(source)
        if abs(missing) >= self.lobe.hop_length:
            raise DataError(
                f"{self.settings['manifests']}/{split}.json: {key!r} of the entry {name!r} has {len(source)} samples, "
                f"but 'wav' has {len(mixture)}; up to {self.lobe.hop_length - 1} more or less are cut or padded"
            )
        return F.pad(source, (0, missing))

    def _latent(self, split: str, key: str, name: str, mixture: Tensor) -> Tensor:
        """Return the cached latent (L, D) of a source, with its last frame once more where the mixture's has more."""
        latent = self.speech.latent(key, split, name)
        return latent[torch.arange(len(mixture)).clamp(max=len(latent) - 1)]


def ordered(estimates: Tensor, order: Tensor) -> Tensor:
    """Bring estimates (B, S, ...) into the order of the sources, (B, S) numbers of estimates."""
    return estimates[torch.arange(len(order), device=order.device)[:, None], order]


def plain_si_sdr(source: Tensor, estimate: Tensor) -> float | None:
    """Return the SI-SDR in dB, None for silence."""
    try:
        return si_sdr(source, estimate, 16000)
    except MetricError:
        return None
