"""A frozen WavCube that belongs to a module of ESPnet without being part of its module tree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from wavcube_plugins.errors import InputError
from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.models.wavcube import WavCube

# Options of ESPnet's DefaultFrontend and LogMelFbank that mean nothing to us.
_FILTER_BANK = frozenset(
    "n_fft win_length hop_length window center normalized onesided n_mels fmin fmax htk log_base apply_stft "
    "frontend_conf".split()
)


class HoldsWavCube(nn.Module):
    """Base class of modules that compute with a frozen WavCube.

    ESPnet saves a registered sub-module in every epoch's checkpoint, lets `init:` overwrite it, puts it into training
    mode and passes it to the optimiser, frozen or not. A held model is spared all that: the owner has no parameters and
    no state keys for it. It stays in evaluation mode, moves to the owner's device, keeps its own type when the owner is
    cast, and is copied and pickled with the owner.
    """

    model: WavCube
    source: str

    def hold(self, model: WavCube, source: str, without: Sequence[str] = ()) -> None:
        """Take a model and freeze it.

        Args:
            model: On any device; it follows the owner.
            source: The name or path it was loaded from.
            without: Paths of sub-modules to remove because they are not needed.
        """
        remove_parts(model, without)
        # Past nn.Module.__setattr__, which would register it.
        self.__dict__["model"] = model.eval().requires_grad_(False)
        self.source = source

    @contextlib.contextmanager
    def frozen_precision(self, inputs: Tensor) -> Iterator[None]:
        """Compute in the model's own type, whatever AMP says, and with gradients only if the inputs need them.

        Gradients have to reach a module in front of the model that is trained with it, such as speech enhancement.
        """
        gradients = torch.is_grad_enabled() and inputs.requires_grad
        with torch.autocast(inputs.device.type, enabled=False), torch.set_grad_enabled(gradients):
            yield

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        held = self.__dict__.get("model")
        if held is not None:
            # Only the device: a cast to half precision and back would lose digits.
            here = next(held.parameters())
            held.to(device=fn(torch.empty(0, dtype=here.dtype, device=here.device)).device)
        return self

    def train(self, mode: bool = True):
        """Set the mode as usual; the model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self


def remove_parts(model: WavCube, parts: Sequence[str]) -> None:
    """Set sub-modules to None to free their memory; a path such as `compressor.layers` reaches inner ones."""
    for path in parts:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, None)


def parse_rate(rate: int | str) -> int:
    """Return a sample rate in Hz, given as a number or as ESPnet writes it, `16k`.

    Raises:
        InputError: It is neither.
    """
    text = str(rate).strip().lower()
    try:
        return int(float(text.removesuffix("k")) * (1000 if text.endswith("k") else 1))
    except ValueError as error:
        raise InputError(f"fs must be a sample rate in Hz such as 16000 or 16k, got {rate!r}") from error


def check_rate(rate: int | str | None, model: WavCube, source: str) -> None:
    """Raise InputError if a recipe's sample rate is not the model's."""
    if rate is not None and parse_rate(rate) != model.sample_rate:
        raise InputError(f"fs is {rate}, but the WavCube model {source} takes {model.sample_rate} Hz; set fs to that")


def ignore_filter_bank_options(options: Mapping[str, object], section: str) -> bool:
    """Accept the options of ESPnet's filter banks and refuse all others.

    Returns:
        Whether they are the complete defaults of ESPnet's own class, as ESPnet3 merges them into a configuration
        without options: then fs and hop_length do not come from the user either.

    Raises:
        InputError: An option is neither ours nor one of a filter bank.
    """
    unknown = sorted(options.keys() - _FILTER_BANK)
    if unknown:
        raise InputError(f"{section} has the option {unknown[0]}, which wavcube does not know")
    # tts.sh passes n_fft, hop_length and win_length, never a window.
    return "window" in options


def whole_lengths(inputs: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the lengths (B,), or those of whole items where ESPnet gives none, as at inference."""
    if lengths is None:
        return torch.full((inputs.shape[0],), inputs.shape[1], dtype=torch.long, device=inputs.device)
    return lengths


def pass_latents(latents: Tensor, lengths: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    """Pass on latents that were read from disk.

    Args:
        latents: (B, L, D).
        lengths: (B,) frames, or None if all items are whole.
        dim: The expected D.

    Returns:
        A copy, zero beyond the lengths, because ESPnet normalises in place; and the lengths.

    Raises:
        InputError: The number of channels differs.
    """
    if latents.shape[2] != dim:
        raise InputError(
            f"expected waveforms (batch, samples) or latents (batch, frames, {dim}), got {tuple(latents.shape)}: "
            "latents of another model, or a recording of several channels"
        )
    lengths = whole_lengths(latents, lengths)
    valid = length_mask(lengths.to(latents.device), latents.shape[1])
    return latents.masked_fill(~valid[..., None], 0.0), lengths
