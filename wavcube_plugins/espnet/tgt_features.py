"""`tgt_feats_extract: wavcube`: the latent as the target of ESPnet's speech-to-speech translation."""

from __future__ import annotations

from espnet2.s2st.tgt_feats_extract.abs_tgt_feats_extract import AbsTgtFeatsExtract

from wavcube_plugins.espnet.features import WavCubeFeatsExtract


class WavCubeTgtFeatsExtract(WavCubeFeatsExtract, AbsTgtFeatsExtract):
    """`WavCubeFeatsExtract` under the base class that the s2st task asks for; arguments and errors are the same."""

    def spectrogram(self) -> bool:
        """Return True, ESPnet's word for continuous features with a vocoder."""
        return True
