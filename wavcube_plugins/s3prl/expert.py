"""The upstream itself: s3prl's list of waveforms in, its dictionary of features out."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from wavcube_plugins.checkpoints import CheckpointError, load_model
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.models.lengths import length_mask, pad_batch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class UpstreamOptions:
    """What a file given with `-g` may set.

    Args:
        config: Sizes of a `.ckpt` file that is of no preset: a preset's name, or a mapping as in `config.json`.
        revision: Branch, tag or commit of a model on the Hugging Face hub.
        dtype: Type to compute in: float32, bfloat16 or float16. Features are float32 in any case; fine-tune in float32.
        only_hidden_states: Leave out every key but `hidden_states` and `last_hidden_state`. s3prl cannot say which keys
            it needs, so all are computed otherwise: this saves the Restorer's time and the memory of WavLM's layers.
    """

    config: str | Mapping[str, Any] | None = None
    revision: str | None = None
    dtype: str = "float32"
    only_hidden_states: bool = False

    def __post_init__(self):
        if self.config is not None and not isinstance(self.config, (str, Mapping)):
            raise ValueError(f"config must be a preset's name or a mapping, got {self.config!r}")
        if self.revision is not None and not isinstance(self.revision, str):
            raise ValueError(f"revision must be text, got {self.revision!r}; put it in quotes")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")
        if not isinstance(self.only_hidden_states, bool):
            raise ValueError(f"only_hidden_states must be true or false, got {self.only_hidden_states!r}")

    @classmethod
    def read(cls, source: str | os.PathLike | Mapping[str, Any] | None, **more: Any) -> UpstreamOptions:
        """Read options from a YAML or JSON file or a mapping; those given by name go before the file's.

        The `config.json` of a model folder serves as well: its sizes are taken.

        Raises:
            ValueError: no such file, not a mapping, an unknown name or a value of the wrong kind.
        """
        where = "the options" if source is None or isinstance(source, Mapping) else str(source)
        values = {} if source is None else source if isinstance(source, Mapping) else _read_mapping(source)
        if "format" in values and "config" in values:
            values = {"config": values["config"]}
        values = {**values, **more}
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(f"{where}: unknown option {unknown[0]!r}; known are {', '.join(known)}")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


class UpstreamExpert(nn.Module):
    """WavCube as s3prl wants an upstream.

    >>> upstream = UpstreamExpert("nano").eval()
    >>> upstream([torch.randn(16000), torch.randn(9000)])["hidden_states"][0].shape
    torch.Size([2, 50, 32])

    Nothing in it is random, in training mode neither: no dropout, no layer drop, no masking.

    Args:
        ckpt: The weights: whatever `load_model` takes, or a URL.
        model_config: YAML or JSON file, or a mapping, of `UpstreamOptions`.
        refresh: Download a URL again. (Hub names are compared with the hub at every start in any case.)
        default: What to load when `ckpt` is None.
        layers: False: `hidden_states` is the latent alone, the paper's protocol. True: it is every hidden state of
            WavLM, for SUPERB's weighted sum.
        options: Fields of `UpstreamOptions` by name.

    Raises:
        ValueError: weights that cannot be loaded, or wrong options; one sentence.
    """

    def __init__(
        self,
        ckpt: str | os.PathLike | None = None,
        model_config: str | os.PathLike | Mapping[str, Any] | None = None,
        refresh: bool = False,
        *,
        default: str = "wavcube",
        layers: bool = False,
        **options: Any,
    ):
        super().__init__()
        self.layers = layers
        self.options = UpstreamOptions.read(model_config, **options)
        sizes = self.options.config
        if is_url(ckpt):
            ckpt = url_source(ckpt, refresh=refresh)
        try:
            self.model = load_model(
                default if ckpt is None else ckpt,
                config=WavCubeConfig.from_dict(dict(sizes)) if isinstance(sizes, Mapping) else sizes,
                dtype=_DTYPES[self.options.dtype],
                revision=self.options.revision,
            )
        except CheckpointError as error:
            if ckpt is None:
                raise CheckpointError(f"{error} (with run_downstream.py: -k nano)") from error
            raise
        self.model.decoder = None  # nearly half of the weights, and an upstream never decodes
        self.model.eval()

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the samples between two frames; at a latent rate of 25 Hz the latent's are twice those of WavLM."""
        latent = key == "latent" or (key in (None, "hidden_states", "last_hidden_state") and not self.layers)
        return self.model.hop_length if latent else self.model.config.wavlm.hop_length

    def train(self, mode: bool = True) -> UpstreamExpert:
        """Set the mode as usual, but keep the model itself in evaluation, so that features never become random."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, wavs: list[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Turn waveforms into features.

        s3prl cuts round(T / hop) or ceil(T / hop) frames for each item out of what it gets, and the model makes up to
        two fewer. An item's last frame is therefore repeated to the end of the batch: what s3prl cuts out then never
        depends on the other items.

        Args:
            wavs: Waveforms (T_i,) at the model's sample rate, floating point, at least one sample each.

        Returns:
            Features of ceil(T / hop) frames L, T the longest item, in float32; the hop is the key's
            `get_downsample_rates`. `hidden_states`, a list with the latent alone, or with WavLM's `num_layers` + 1
            hidden states if `layers`; `last_hidden_state`, the last of these; `latent` (B, L, latent_dim); `wavlm`, all
            hidden states (B, L, C); `restored` (B, L, C).

        Raises:
            ValueError: a waveform that is not 1-D, not floating point, empty or not finite.
        """
        for index, wav in enumerate(wavs):
            if wav.ndim != 1 or not wav.is_floating_point():
                shape = tuple(wav.shape)
                raise ValueError(f"waveform {index} must be 1-D and floating point, got shape {shape} of {wav.dtype}")
        waveforms, lengths = pad_batch([wav.float() for wav in wavs])
        features: dict[str, Any] = {}
        if not self.options.only_hidden_states:
            result = self.model.features(waveforms, lengths)
            frames, latent_frames = result.lengths, result.latent_lengths
            features = {"latent": result.latent, "wavlm": result.hidden_states, "restored": result.restored}
        elif self.layers:
            features["wavlm"], frames = self.model.hidden_states(waveforms, lengths)
        else:
            features["latent"], latent_frames = self.model.encode(waveforms, lengths)

        if "latent" in features:
            wanted = math.ceil(waveforms.shape[1] / self.model.hop_length)
            features["latent"] = _repeat_last(features["latent"], latent_frames, wanted)
        wanted = math.ceil(waveforms.shape[1] / self.model.config.wavlm.hop_length)
        if "restored" in features:
            features["restored"] = _repeat_last(features["restored"], frames, wanted)
        states = features.get("wavlm", [])
        for index, state in enumerate(states):  # in place: the layers of a large batch are gigabytes
            states[index] = _repeat_last(state, frames, wanted)
        hidden_states = list(states) if self.layers else [features["latent"]]
        if self.options.only_hidden_states:
            features = {}
        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1], **features}


def is_url(source: Any) -> bool:
    """Say whether a source is to be downloaded over the web."""
    return isinstance(source, str) and source.startswith(("https://", "http://", "file://"))


def url_source(url: str, *, refresh: bool = False) -> str:
    """Download a URL into torch.hub's folder, unless it is there already, and return the file's path.

    Raises:
        CheckpointError: not a URL, or it cannot be downloaded.
    """
    if not is_url(url):
        raise CheckpointError(f"{url}: expected a URL (https://…); for a local file use the entry that ends in _local")
    # Files of different URLs may have one name, and load_model goes by the name's suffix.
    folder = Path(torch.hub.get_dir()) / "wavcube" / hashlib.sha256(url.encode()).hexdigest()[:16]
    address, question_mark, query = url.partition("?")
    parent, _, name = address.rpartition("/")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for wanted in [name, "config.json"] if name.endswith(".safetensors") else [name]:
            if refresh or not (folder / wanted).exists():
                source = f"{parent}/{wanted}{question_mark}{query}"
                torch.hub.download_url_to_file(source, os.fspath(folder / wanted))
    except OSError as error:
        raise CheckpointError(f"{url}: cannot be downloaded, {error}") from error
    return os.fspath(folder / name)


def local_source(path: str | os.PathLike) -> str:
    """Return a path to weights on this machine.

    Raises:
        CheckpointError: nothing is there.
    """
    if not Path(path).expanduser().exists():
        raise CheckpointError(
            f"{path}: no such file or folder; the entry without _local also takes presets and hub names"
        )
    # Absolute, since a bare `nano` would be the packaged model.
    return os.path.abspath(Path(path).expanduser())


def _read_mapping(path: str | os.PathLike) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "not YAML or JSON"
        raise ValueError(f"{path}: expected a file of options for -g, {reason}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: expected a mapping of options for -g, found {type(values).__name__}")
    return values


def _repeat_last(x: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """Bring x (B, L, C) to (B, frames, C) in float32, each item's last valid frame repeated behind it."""
    x = x.float()
    size, longest, _ = x.shape
    valid = length_mask(lengths, frames)[..., None]
    if frames == longest and bool(valid.all()):
        return x
    last = x[torch.arange(size, device=x.device), lengths - 1][:, None]  # (B, 1, C)
    return torch.where(valid, F.pad(x, (0, 0, 0, frames - longest)), last)
