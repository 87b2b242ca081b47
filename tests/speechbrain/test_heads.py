"""What recipes put on the lobe: heads and mappers that padding does not touch, losses, slots, the learning rate."""

import doctest
import itertools
import math
import warnings

import pytest
import torch
from helpers.paths import GOLDEN, ROOT
from torch import nn

from wavcube_plugins.evaluation import si_sdr
from wavcube_plugins.heads import slots
from wavcube_plugins.heads.classification import Classifier, Pooled
from wavcube_plugins.heads.conversion import VoiceConverter, normalise_over_time
from wavcube_plugins.heads.losses import best_order, pairwise_latent_loss, pairwise_snr_loss
from wavcube_plugins.heads.recognition import Recurrent, Understanding
from wavcube_plugins.heads.restoration import LatentMapper, apply_masks
from wavcube_plugins.speechbrain import OnWavCube, WavCube, modules
from wavcube_plugins.speechbrain.modules import WaveformConverter, WaveformRestorer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchaudio and SpeechBrain about each other's age
    from hyperpyyaml import load_hyperpyyaml

    from wavcube_plugins.speechbrain.recipes.batches import crop
    from wavcube_plugins.speechbrain.recipes.schedule import learning_rate
    from wavcube_plugins.speechbrain.recipes.text import make_tokens

SOURCE = GOLDEN / "official_stage2.ckpt"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the weights of:UserWarning", "ignore:torchaudio._backend:UserWarning"),
]


def features(*frames, channels=16):
    """Features of several lengths, padded with what must not matter."""
    items = [torch.randn(count, channels) for count in frames]
    padded = torch.full((len(items), max(frames), channels), 3.0)
    for row, item in enumerate(items):
        padded[row, : len(item)] = item
    return items, padded, torch.tensor(frames)


@pytest.mark.parametrize("module", [modules, slots])
def test_examples_of_the_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


@pytest.mark.parametrize(
    "head",
    [
        lambda: Recurrent(16, 5, dim=12, log_softmax=True),
        lambda: Pooled(16, 6, dim=12),
        lambda: Understanding(16, {"units": 5, "action": 3}, dim=12, layers=1),
    ],
)
def test_heads_do_not_see_the_padding(head):
    module = head().eval()
    items, padded, frames = features(90, 7, 65)
    together = module(padded, frames)
    for row, item in enumerate(items):
        alone = module(item[None], frames[row : row + 1])
        pairs = [(together[key], alone[key]) for key in alone] if isinstance(alone, dict) else [(together, alone)]
        for whole, single in pairs:
            index = tuple(slice(0, size) for size in single[0].shape)
            torch.testing.assert_close(whole[row][index], single[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("spectrum", [False, True])
def test_a_mapper_does_not_see_the_padding(spectrum):
    module = LatentMapper(16, 2, dim=24, layers=2, heads=2, context=9, spectrum=spectrum).eval()
    items, padded, frames = features(90, 7, 65)
    waves = [torch.randn(320 * int(count) + 80) for count in frames]
    together = module(padded, frames, nn.utils.rnn.pad_sequence(waves, batch_first=True))
    for row, (item, wave) in enumerate(zip(items, waves, strict=True)):
        alone = module(item[None], frames[row : row + 1], wave[None])
        for key, single in alone.items():
            index = tuple(slice(0, size) for size in single[0].shape)
            torch.testing.assert_close(together[key][row][index], single[0], rtol=0, atol=1e-5)
        louder = module(item[None], frames[row : row + 1], 3 * wave[None])  # the level does not matter
        torch.testing.assert_close(louder["masks"], alone["masks"], rtol=0, atol=1e-5)
        other = module(item[None], frames[row : row + 1], torch.randn(1, len(wave)))
        assert torch.equal(other["masks"], alone["masks"]) != spectrum


def test_the_blank_stands_behind_the_frames():
    out = Recurrent(16, 5, dim=12, log_softmax=True)(*features(9, 4)[1:])
    assert (out[1, 4:].argmax(-1) == 0).all() and (out[1, 4:, 0] == 0).all()
    torch.testing.assert_close(out[0].exp().sum(-1), torch.ones(9))


def test_a_converter_does_not_see_the_padding():
    converter = VoiceConverter(16, 8, content_dim=6, dim=24, layers=2, heads=2, context=9).eval()
    for modulation in converter.modulations:
        nn.init.normal_(modulation.weight, std=0.3)
    items, source, frames = features(70, 11)
    voices, target, target_frames = features(20, 44)
    together = converter(source, frames, target, target_frames)
    for row, (item, voice) in enumerate(zip(items, voices, strict=True)):
        alone = converter(item[None], frames[row : row + 1], voice[None], target_frames[row : row + 1])
        torch.testing.assert_close(together[row, : len(item)], alone[0], rtol=0, atol=1e-5)
    # The voice counts, and the level of a channel does not.
    other = converter(source, frames, target.flip(0), target_frames.flip(0))
    assert not torch.allclose(other, together, atol=1e-2)
    moved = converter(2 * source + 5, frames, target, target_frames)
    torch.testing.assert_close(moved, together, rtol=0, atol=1e-3)
    content = normalise_over_time(source, frames)
    torch.testing.assert_close(content[1, :11].mean(0), torch.zeros(16), rtol=0, atol=1e-5)
    assert not content[1, 11:].any()


def test_a_lobe_with_a_head_takes_waveforms_and_latents():
    lobe = WavCube(SOURCE, freeze=True)
    model = OnWavCube(lobe, Recurrent(16, 5, dim=12)).eval()
    wavs = 0.1 * torch.randn(2, 8000)
    lens = torch.tensor([1.0, 0.4])
    latent, latent_lens = lobe.encode(wavs, lens)
    assert model.frame_counts(wavs, lens).tolist() == model.frame_counts(latent, latent_lens).tolist() == [24, 9]
    torch.testing.assert_close(model(wavs, lens), model(latent, latent_lens))
    torch.testing.assert_close(model(wavs), model(wavs, torch.ones(2)))
    layered = OnWavCube(WavCube(SOURCE, freeze=True, output_all_hiddens=True), Recurrent(64, 5, dim=12))
    assert layered(wavs, lens).shape == (2, 24, 5) and "weighted_sum.weights" in layered.state_dict()


def test_a_classifier_gives_probabilities_and_widens_angles():
    for angular in (False, True):
        classifier = Classifier(8, 4, angular=angular)
        x, labels = torch.randn(5, 8), torch.tensor([0, 1, 2, 3, 0])
        torch.testing.assert_close(classifier(x).exp().sum(-1), torch.ones(5))
        own = classifier(x).gather(1, labels[:, None])
        hard = classifier(x, labels, 0.3).gather(1, labels[:, None])
        assert (hard < own).all() if angular else torch.equal(hard, own)
    # The angle itself, from the definition.
    classifier = Classifier(2, 2, angular=True, scale=1.0)
    with torch.no_grad():
        classifier.linear.weight.copy_(torch.eye(2))
    angle = 0.7
    x = torch.tensor([[math.cos(angle), math.sin(angle)]])
    out = classifier(x, torch.tensor([0]), 0.2)
    expected = torch.tensor([[math.cos(angle + 0.2), math.sin(angle)]]).log_softmax(-1)
    torch.testing.assert_close(out, expected)


def test_masks_filter_what_comes_in():
    generator = torch.Generator().manual_seed(0)
    wav = torch.randn(2, 8000, generator=generator)
    frames = torch.tensor([24, 9])
    ones = torch.ones(2, 1, 48, 321)
    torch.testing.assert_close(apply_masks(wav, ones, frames)[:, 0], wav, rtol=0, atol=1e-5)
    assert not apply_masks(wav, torch.zeros(2, 2, 48, 321), frames).any()
    # High bins off: a low tone stays, a high one goes.
    low, high = (torch.sin(torch.arange(8000) * 2 * math.pi * hertz / 16000)[None] for hertz in (200, 6000))
    masks = ones[:1].clone()
    masks[..., 100:] = 0
    filtered = apply_masks(low + high, masks, frames[:1])[0, 0]
    assert si_sdr(low[0], filtered, 16000) > 25


def test_restored_waveforms_do_not_depend_on_the_batch():
    lobe = WavCube(SOURCE, freeze=True)
    wavs = [0.1 * torch.randn(length) for length in (9600, 4000)]
    batch = torch.zeros(2, 9600)
    for row, wav in enumerate(wavs):
        batch[row, : len(wav)] = wav
    lens = torch.tensor([1.0, 4000 / 9600])
    with torch.no_grad():
        for output, spectrum in (("masks", False), ("latents", False), ("masks", True)):
            model = OnWavCube(lobe, LatentMapper(16, 2, dim=24, layers=1, heads=2, spectrum=spectrum)).eval()
            restorer = WaveformRestorer(model, output)
            together, _ = restorer(batch, lens)
            assert together.shape == (2, 2, 9600) and not together[1, :, 4000:].any()
            for row, wav in enumerate(wavs):
                alone, _ = restorer(wav[None])
                torch.testing.assert_close(together[row, :, : len(wav)], alone[0], rtol=0, atol=2e-4)
        converter = WaveformConverter(lobe, VoiceConverter(16, 8, content_dim=4, dim=24, layers=1, heads=2)).eval()
        together = converter(batch, batch, lens, lens)
        alone = converter(wavs[1][None], wavs[1][None])
        torch.testing.assert_close(together[1, :4000], alone[0], rtol=0, atol=2e-4)
    with pytest.raises(ValueError, match="output must be one of latents, got 'masks'"):
        WaveformRestorer(OnWavCube(lobe, LatentMapper(16, 1, dim=8, layers=1, heads=2, masks=False)), "masks")


def test_channels_that_heads_cannot_share_are_refused():
    for kind in (LatentMapper, VoiceConverter):
        with pytest.raises(ValueError, match="dim must be a multiple of 16, twice the 8 attention heads, got 100"):
            kind(16, 2, dim=100)


def test_losses_find_the_order_of_sources():
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(3, 3, 500, generator=generator)
    lengths = torch.tensor([500, 400, 300])
    orders = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 0, 2]])
    # Estimate number orders[i, s] is of source s.
    estimates = torch.empty_like(sources)
    for item, source in itertools.product(range(3), range(3)):
        estimates[item, orders[item, source]] = sources[item, source]
    noisy = estimates + 0.1 * torch.randn(estimates.shape, generator=generator)
    losses = pairwise_snr_loss(noisy, sources, lengths)
    best, found = best_order(losses)
    assert torch.equal(found, orders)
    torch.testing.assert_close(best, torch.full((3,), -2.0), rtol=0, atol=0.1)  # 20 dB
    # Beyond the lengths nothing counts.
    noisy[2, :, 300:] = 100.0
    torch.testing.assert_close(pairwise_snr_loss(noisy, sources, lengths), losses)
    latents = torch.randn(3, 3, 20, 8, generator=generator)
    moved = latents[torch.arange(3)[:, None], orders.argsort(1)]
    losses = pairwise_latent_loss(moved, latents, torch.tensor([20, 15, 10]))
    best, found = best_order(losses)
    assert torch.equal(found, orders)
    torch.testing.assert_close(best, torch.zeros(3), rtol=0, atol=1e-5)


def test_pieces_of_several_views_lie_at_the_same_place():
    latent = torch.arange(40.0).repeat(2, 1)[..., None].expand(-1, -1, 3)
    wav = torch.arange(40.0).repeat_interleave(320).repeat(2, 1)
    torch.manual_seed(0)
    (piece, sound), lens = crop([latent, wav], torch.tensor([1.0, 0.2]), 10, [1, 320])
    assert piece.shape == (2, 10, 3) and sound.shape == (2, 3200)
    torch.testing.assert_close(lens, torch.tensor([1.0, 0.8]))
    assert torch.equal(piece[0, :, 0], sound[0, ::320])
    assert piece[0, 0, 0] > 0 and torch.equal(piece[1, :8, 0], torch.arange(8.0))
    torch.manual_seed(0)
    again, _ = crop([latent], torch.tensor([1.0, 0.2]), 10, [1])
    assert torch.equal(again[0], piece)


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 100, 10) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == 1.0 and rates.index(1.0) in (9, 10)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:])) and 0.01 <= rates[-1] < 0.02


def test_slots_come_back_from_their_units():
    text, marked = "turn on the lights in the hall", [["device", "lights"], ["room", "hall"]]
    units = slots.tag_text(text, marked)
    assert slots.read_tags(units) == (text, [tuple(slot) for slot in marked])
    assert slots.read_tags(slots.tag_text(text, [["room", "cellar"]])) == (text, [])
    # The same words twice are two places, and one that is not closed ends where the next begins.
    twice = slots.tag_text("one and one", [["a", "one"], ["b", "one"]])
    assert slots.read_tags(twice) == ("one and one", [("a", "one"), ("b", "one")])
    assert slots.read_tags(["<a>", "x", "<b>", "y"]) == ("xy", [("a", "x"), ("b", "y")])
    assert slots.slot_f1([([["a", "x"]], [("a", "x")]), ([["b", "y"]], [("b", "z")])]) == 50.0
    assert slots.slot_f1([([], [])]) == 100.0


def test_units_of_text(tmp_path):
    characters = make_tokens("character", ["abc", "cab d"], 0, tmp_path)
    assert len(characters) == 6 and characters.decode(characters.encode("bad x cab")) == "bad  cab"
    pieces = make_tokens("bpe", ["the cat sat on the mat", "the rat ate the hat"] * 4, 20, tmp_path)
    numbers = pieces.encode("the hat")
    assert 0 not in numbers and pieces.decode(numbers) == "the hat"
    assert make_tokens("bpe", [], 20, tmp_path).encode("the hat") == numbers  # from the file


def test_the_file_for_speechbrains_own_script(tmp_path):
    """What the LibriSpeech script of SpeechBrain does with it, step by step."""

    from speechbrain.decoders import ctc_greedy_decode
    from speechbrain.decoders.ctc import CTCBeamSearcher
    from speechbrain.nnet.schedulers import update_learning_rate

    path = ROOT / "speechbrain_hparams" / "asr_ctc" / "hparams" / "stock_train_with_wav2vec.yaml"
    overrides = {
        "source": str(SOURCE), "dim": 12, "layers": 1, "output_neurons": 6, "data_folder": "x",
        "output_folder": str(tmp_path), "save_folder": str(tmp_path / "save"),
    }  # fmt: skip
    hparams = load_hyperpyyaml(path.read_text(), overrides)
    modules = nn.ModuleDict(hparams["modules"]).train()
    optimisers = [
        hparams["wav2vec_opt_class"](modules.wav2vec2.parameters()),
        hparams["model_opt_class"](hparams["model"].parameters()),
    ]
    wavs, lens = 0.1 * torch.randn(2, 8000), torch.tensor([1.0, 0.6])
    tokens, token_lens = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([1.0, 2 / 3])
    losses = []
    for _ in range(15):
        probabilities = hparams["log_softmax"](modules.ctc_lin(modules.enc(modules.wav2vec2(wavs, lens))))
        loss = hparams["ctc_cost"](probabilities, tokens, lens, token_lens)
        loss.backward()
        for optimiser in optimisers[1:] if hparams["freeze_wav2vec"] else optimisers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert len(ctc_greedy_decode(probabilities, lens, blank_id=hparams["blank_index"])) == 2
    searcher = CTCBeamSearcher(**hparams["test_beam_search"], vocab_list=["<blank>", " ", "a", "b", "c", "d"])
    assert isinstance(searcher(probabilities.detach(), lens)[0][0].text, str)
    for scheduler, optimiser in (("lr_annealing_wav2vec", 0), ("lr_annealing_model", 1)):
        update_learning_rate(optimisers[optimiser], hparams[scheduler](1.0)[1])
    words, letters = hparams["error_rate_computer"](), hparams["cer_computer"]()
    for stats in (words, letters):
        stats.append(["a"], [["x", "y"]], [["x", "z"]])
    assert words.summarize("error_rate") == 50.0 and round(letters.summarize("error_rate")) == 33  # of "x", " ", "y"
    loaders = [f"{split}_dataloader_opts" for split in ("train", "valid", "test")]
    splits = ["train_splits", "dev_splits", "test_splits", "test_csv", "skip_prep", "sorting"]
    for key in ("epoch_counter", "train_logger", "output_wer_folder", *loaders, *splits):
        assert key in hparams
    hparams["checkpointer"].save_checkpoint(meta={"WER": 1.0})
    saved = hparams["checkpointer"].find_checkpoint().path
    assert torch.load(saved / "wav2vec2.ckpt") == {}  # the frozen model is not in it
