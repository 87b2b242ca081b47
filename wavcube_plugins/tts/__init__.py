"""Zero-shot text-to-speech by flow matching on the latent, with F5-TTS's network as in the paper, in plain PyTorch.

>>> model = FlowMatching(FlowConfig.preset("base"), vocab_size=80, latent_dim=128)
>>> loss = model(latent, lengths, tokens, token_lengths).loss            # a training step's
>>> latent, lengths = model.sample(tokens, token_lengths, frames, prompt, prompt_lengths, seeds=0)
"""

from wavcube_plugins.config import FlowConfig
from wavcube_plugins.tts.flow import FlowDraws, FlowLoss, FlowMatching, FlowNetwork, LatentNorm
from wavcube_plugins.tts.plan import cross_fade, new_frames, split_text

__all__ = [
    "FlowConfig",
    "FlowDraws",
    "FlowLoss",
    "FlowMatching",
    "FlowNetwork",
    "LatentNorm",
    "cross_fade",
    "new_frames",
    "split_text",
]
