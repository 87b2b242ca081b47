"""A model can be pickled, saved whole, copied and sent to other processes; names in its state dict are torchaudio's."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torchaudio
from torch.utils.data import DataLoader, Dataset

from wavcube_plugins import WavCube, WavCubeConfig, load_model
from wavcube_plugins.models.conv_stem import PositionalConvolution

pytestmark = pytest.mark.usefixtures("one_thread")


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copying", [pickled, saved, copy.deepcopy], ids=lambda function: function.__name__)
def test_copies_compute_the_same_and_share_nothing(golden_model, golden_io, copying):
    golden_model.metadata["note"] = "kept"
    golden_model.decoder.requires_grad_(False)
    other = copying(golden_model)
    waveform = golden_io["a.waveform"][None]
    with torch.inference_mode():
        latent, frames = golden_model.encode(waveform)
        assert torch.equal(other.encode(waveform)[0], latent)
        assert torch.equal(other.decode(latent, frames)[0], golden_model.decode(latent, frames)[0])
    assert (other.config, other.trained, other.metadata) == (
        golden_model.config, golden_model.trained, golden_model.metadata
    )  # fmt: skip
    assert not other.training and list(other.state_dict()) == list(golden_model.state_dict())
    trainable = [name for name, parameter in golden_model.named_parameters() if parameter.requires_grad]
    assert trainable == [name for name, parameter in other.named_parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(golden_model.encode(waveform)[0], latent)


def test_a_pickle_is_read_by_another_process(golden_model, golden_io, tmp_path):
    torch.save(golden_model, tmp_path / "whole.pt")
    torch.save(golden_io["a.waveform"][None], tmp_path / "waveform.pt")
    code = (
        "import sys, torch\n"
        "folder = sys.argv[1]\n"
        "model = torch.load(f'{folder}/whole.pt', weights_only=False)\n"
        "with torch.inference_mode():\n"
        "    torch.save(model.encode(torch.load(f'{folder}/waveform.pt'))[0], f'{folder}/latent.pt')"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    with torch.inference_mode():
        expected = golden_model.encode(golden_io["a.waveform"][None])[0]
    torch.testing.assert_close(torch.load(tmp_path / "latent.pt"), expected, atol=1e-5, rtol=0)


class Latents(Dataset):
    """Encodes where it is read: in the workers."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 3

    def __getitem__(self, index):
        torch.set_num_threads(1)
        with torch.inference_mode():
            return self.model.encode(torch.sin(torch.arange(4000) / (5.0 + index))[None])[0][0].clone()


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_workers_of_a_data_loader_encode(start):
    dataset = Latents(load_model("nano"))
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=start)
    for latent, expected in zip(loader, [dataset[index] for index in range(3)], strict=True):
        torch.testing.assert_close(latent, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", [1, 2, 15, 16, 128])
def test_the_positional_convolution_is_torchaudios(kernel):
    theirs = torchaudio.models.wav2vec2.components.ConvolutionalPositionalEmbedding(32, kernel, 4)
    ours = PositionalConvolution(32, kernel, 4)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 40, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-5)
    gradients = [
        dict(zip((name for name, _ in module.named_parameters()), torch.autograd.grad(
            module(x).square().sum(), list(module.parameters())
        ), strict=True))
        for module in (ours, theirs)
    ]  # fmt: skip
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-4)


def test_new_weights_are_drawn_as_before():
    torch.manual_seed(3)
    theirs = torchaudio.models.wav2vec2.components.ConvolutionalPositionalEmbedding(32, 16, 4).state_dict()
    torch.manual_seed(3)
    ours = PositionalConvolution(32, 16, 4).state_dict()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor)


def test_a_model_of_random_weights_is_pickled_too():
    model = WavCube(WavCubeConfig.preset("tiny"))
    assert all(torch.equal(a, b) for a, b in zip(pickled(model).parameters(), model.parameters(), strict=True))
