"""Files of settings for SpeechBrain's own scripts, used as these scripts use them."""

import warnings

import pytest
import torch
from helpers.paths import GOLDEN, ROOT
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchaudio and SpeechBrain about each other's age
    from hyperpyyaml import load_hyperpyyaml

SOURCE = GOLDEN / "official_stage2.ckpt"
HPARAMS = ROOT / "speechbrain_hparams"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the weights of:UserWarning", "ignore:torchaudio._backend:UserWarning"),
]


def test_sepformer_on_the_latent(tmp_path):
    """The steps of SpeechBrain's script for WSJ0Mix."""
    overrides = {
        "source": str(SOURCE),
        "num_layers": 1,
        "d_ffn": 16,
        "data_folder": "x",
        "output_folder": str(tmp_path),
    }
    hparams = load_hyperpyyaml((HPARAMS / "separate" / "hparams" / "stock_sepformer.yaml").read_text(), overrides)
    modules = nn.ModuleDict(hparams["modules"]).train()
    hparams["pretrained_separator"].collect_files()
    hparams["pretrained_separator"].load_collected()
    optimiser = hparams["optimizer"](modules.parameters())
    sources = 0.1 * torch.randn(1, 16000, 2)
    mixture = sources.sum(-1)
    before = hparams["wavcube"](mixture)
    losses = []
    for _ in range(6):
        encoded = hparams["Encoder"](mixture)
        separated = torch.stack([encoded] * 2) * hparams["MaskNet"](encoded)
        estimates = torch.cat([hparams["Decoder"](one).unsqueeze(-1) for one in separated], dim=-1)
        estimates = nn.functional.pad(estimates, (0, 0, 0, mixture.shape[1] - estimates.shape[1]))
        loss = hparams["loss"](sources, estimates).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(hparams["wavcube"](mixture), before)  # the frozen model stays
    hparams["checkpointer"].save_checkpoint()
