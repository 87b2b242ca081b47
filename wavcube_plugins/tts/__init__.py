"""Zero-shot text-to-speech by flow matching on the latent, with F5-TTS's network as in the paper, in plain PyTorch.

>>> flow = FlowMatching(FlowConfig.preset("base"), vocab_size=80, latent_dim=128)
>>> loss = flow(latent, lengths, tokens, token_lengths).loss             # a training step
>>> speech = Synthesiser(flow, codec, tokenise, norm=norm)("a text", prompt_speech=waveform, prompt_text="its words")
"""

from wavcube_plugins.config import FlowConfig
from wavcube_plugins.tts.draws import FlowDraws
from wavcube_plugins.tts.flow import FlowLoss, FlowMatching, FlowNetwork
from wavcube_plugins.tts.normalisation import LatentNorm
from wavcube_plugins.tts.plan import cross_fade, new_frames, split_text
from wavcube_plugins.tts.sampling import Sampling
from wavcube_plugins.tts.synthesiser import Piece, Prompt, SynthesisCodec, SynthesisedSpeech, Synthesiser

__all__ = [
    "FlowConfig",
    "FlowDraws",
    "FlowLoss",
    "FlowMatching",
    "FlowNetwork",
    "LatentNorm",
    "Piece",
    "Prompt",
    "Sampling",
    "SynthesisCodec",
    "SynthesisedSpeech",
    "Synthesiser",
    "cross_fade",
    "new_frames",
    "split_text",
]
