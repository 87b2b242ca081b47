"""How far the windowed mode for hours-long audio is from the exact result.

    python benchmarks/windowed.py --model nano --seconds 120 --windows 10 20 60

The audio is the speech that comes with the package, joined. Printed are the relative error of the latent and of the
waveform decoded from the exact latent (root mean square of the difference over that of the exact result), and the
log-mel distance of the two waveforms, which does not count shifts of phase that nobody hears.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import torch

from wavcube_plugins import load_model
from wavcube_plugins.audio import find_audio, read_audio
from wavcube_plugins.checkpoints import ASSETS
from wavcube_plugins.evaluation.metrics import mel_distance


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).square().mean() / exact.square().mean()).sqrt().item()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--windows", nargs="+", type=float, default=[10, 20, 60])
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    model = load_model(options.model)
    speech = torch.cat([read_audio(path, model.sample_rate) for path in find_audio(ASSETS / "speech")])
    waveforms = speech[: int(options.seconds * model.sample_rate)][None]
    print(f"{options.model}, {waveforms.shape[1] / model.sample_rate:.0f} s of speech")
    print(f"{'window':>8}{'latent':>10}{'waveform':>10}{'log-mel':>10}")
    with torch.inference_mode():
        latent, lengths = model.encode(waveforms)
        sound, _ = model.decode(latent, lengths)
        for window in options.windows:
            encoded, _ = model.encode(waveforms, window_seconds=window)
            decoded, _ = model.decode(latent, lengths, window_seconds=window)
            distance = mel_distance(sound[0], decoded[0], model.sample_rate)
            errors = relative_error(encoded, latent), relative_error(decoded, sound)
            print(f"{window:6g} s{errors[0]:10.2%}{errors[1]:10.2%}{distance:10.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
