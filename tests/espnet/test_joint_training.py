"""Joint training in ESPnet: speech enhancement in front of recognition on a frozen `frontend: wavcube`."""

import pytest
import torch

from wavcube_plugins.espnet import register

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the weights of 'tiny'"),
]

register()

from espnet2.tasks.enh_s2t import EnhS2TTask  # noqa: E402

OPTIONS = {
    "enh_encoder": "conv",
    "enh_encoder_conf": "{channel: 8, kernel_size: 16, stride: 8}",
    "enh_separator": "rnn",
    "enh_separator_conf": "{num_spk: 1, layer: 1, unit: 8}",
    "enh_decoder": "conv",
    "enh_decoder_conf": "{channel: 8, kernel_size: 16, stride: 8}",
    "frontend": "wavcube",
    "normalize": "utterance_mvn",
    "asr_encoder": "rnn",
    "asr_encoder_conf": "{num_layers: 1, hidden_size: 8, output_size: 8, subsample: null}",
    "asr_model_conf": "{ctc_weight: 1.0, report_cer: false, report_wer: false}",
    "token_type": "char",
    # The enhancement learns from the recognition alone.
    "model_conf": "{calc_enh_loss: false, bypass_enh_prob: 0}",
}


@pytest.mark.parametrize("features", ["latent", "restored", "layers"])
def test_enhancement_learns_through_a_frozen_frontend(tmp_path, features):
    (tmp_path / "tokens.txt").write_text("<blank>\n<unk>\na\nb\n<sos/eos>\n")
    values = OPTIONS | {
        "token_list": tmp_path / "tokens.txt",
        "frontend_conf": f"{{model: tiny, features: {features}}}",
    }
    parser = EnhS2TTask.get_parser()
    model = EnhS2TTask.build_model(
        parser.parse_args([str(part) for name, value in values.items() for part in (f"--{name}", value)])
    )
    text, lengths = torch.tensor([[2, 3], [3, 2]]), torch.tensor([16000, 12000])
    loss, _, _ = model(torch.randn(2, 16000), lengths, text_spk1=text, text_spk1_lengths=torch.tensor([2, 2]))
    loss.backward()
    enhancement = dict(model.enh_model.named_parameters())
    assert len(enhancement) > 4
    assert not [name for name, weight in enhancement.items() if weight.grad is None or not weight.grad.any()]
    frontend = model.s2t_model.frontend
    assert not [name for name, weight in frontend.model.named_parameters() if weight.requires_grad]
