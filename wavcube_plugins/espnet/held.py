"""A WavCube that belongs to a module of ESPnet without being part of its module tree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wavcube_plugins.checkpoints import load_model
from wavcube_plugins.models.wavcube import WavCube

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HoldsWavCube(nn.Module):
    """Base of modules that compute with a frozen WavCube.

    ESPnet saves a registered sub-module in every epoch's checkpoint, lets `init:` overwrite it, puts it into training
    mode and gives it to the optimiser, frozen or not. A held model is none of that: it has no state keys and no
    parameters as far as the owner goes, stays in evaluation, and moves to the owner's device. Copying and pickling the
    owner takes it along. Its type stays its own when the owner is cast.
    """

    def hold(self, model: WavCube, source: str, without: Sequence[str] = ()) -> None:
        """Take a model, frozen from now on.

        Args:
            model: On any device; it follows the owner.
            source: What it was loaded from.
            without: Parts to remove from it, as paths of attributes, since they are not needed.
        """
        remove_parts(model, without)
        # Past nn.Module.__setattr__, which would register it.
        self.__dict__["model"] = model.eval().requires_grad_(False)
        self.source = source
        self.removed_parts = tuple(without)

    def __getstate__(self):
        # WavLM's weight norm is a parametrisation, which Python cannot pickle: tensors and sizes go instead.
        state = self.__dict__.copy()
        held = state.pop("model", None)
        if held is not None:
            state["held_model"] = held.config, held.state_dict(), held.trained, held.metadata
        return state

    def __setstate__(self, state):
        held = state.pop("held_model", None)
        super().__setstate__(state)
        if held is not None:
            config, weights, trained, metadata = held
            with torch.device("meta"):
                model = WavCube(config)
            remove_parts(model, self.removed_parts)
            model.load_state_dict(weights, assign=True)
            model.trained, model.metadata = trained, metadata
            self.hold(model, self.source, self.removed_parts)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        held = self.__dict__.get("model")
        if held is not None:
            # Only where to: a cast to half precision and back would cost digits that nobody wanted to give away.
            here = next(held.parameters())
            held.to(device=fn(torch.empty(0, dtype=here.dtype, device=here.device)).device)
        return self

    def train(self, mode: bool = True):
        """Set the mode as usual; the model stays in evaluation, so that nothing in it becomes random."""
        super().train(mode)
        self.model.eval()
        return self


def load_held(model: str, dtype: str, revision: str | None = None) -> WavCube:
    """Load a model by the name and type in a configuration file.

    Raises:
        ValueError: no such model, or no such type.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return load_model(model, dtype=DTYPES[dtype], revision=revision)


def remove_parts(model: WavCube, parts: Sequence[str]) -> None:
    """Set parts of a model to None, to free their memory; `compressor.layers` is the layers of the Compressor."""
    for path in parts:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, None)


def parse_rate(rate: int | str) -> int:
    """Return a sample rate in Hz that may be written as ESPnet has it, `16k`.

    Raises:
        ValueError: neither a number nor that.
    """
    text = str(rate).strip().lower()
    try:
        return int(float(text.removesuffix("k")) * (1000 if text.endswith("k") else 1))
    except ValueError as error:
        raise ValueError(f"fs must be a sample rate in Hz such as 16000 or 16k, got {rate!r}") from error


def check_rate(rate: int | str | None, model: WavCube, source: str) -> None:
    """Raise ValueError if a recipe's sample rate is not the model's."""
    if rate is not None and parse_rate(rate) != model.sample_rate:
        raise ValueError(f"fs is {rate}, but the WavCube model {source} takes {model.sample_rate} Hz; set fs to that")


def check_lengths_there(speech: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the lengths (B,), those of whole items where none are given, as ESPnet does at inference."""
    if lengths is None:
        return torch.full((speech.shape[0],), speech.shape[1], dtype=torch.long, device=speech.device)
    return lengths


def pass_latents(latents: Tensor, lengths: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    """Hand on latents that came from disk.

    Args:
        latents: (B, L, D).
        lengths: (B,) frames, or None if all items are whole.
        dim: The D that is expected.

    Returns:
        A copy of them, zero beyond the lengths, since ESPnet's normalisation works in place; and the lengths.

    Raises:
        ValueError: of another size.
    """
    if latents.shape[2] != dim:
        raise ValueError(
            f"expected waveforms (batch, samples) or latents (batch, frames, {dim}), got {tuple(latents.shape)}: "
            "latents of another model, or a recording of several channels"
        )
    lengths = check_lengths_there(latents, lengths)
    frames = torch.arange(latents.shape[1], device=latents.device)
    return latents.masked_fill(frames[None, :, None] >= lengths[:, None, None].to(latents.device), 0.0), lengths
