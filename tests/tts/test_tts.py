"""The flow-matching TTS model: sizes, invariants, objective, sampling, lengths."""

import copy
import dataclasses
import functools
import itertools
import math
import subprocess
import sys

import pytest
import torch
from helpers.paths import ROOT

from wavcube_plugins.models.decoder import Rotary
from wavcube_plugins.tts import (
    FlowConfig,
    FlowDraws,
    FlowMatching,
    LatentNorm,
    cross_fade,
    new_frames,
    split_text,
)
from wavcube_plugins.tts.draws import random_draws
from wavcube_plugins.tts.sampling import initial_noise, schedule
from wavcube_plugins.tts.text import TextEncoder

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = dataclasses.replace(
    FlowConfig.preset("tiny"), dim=64, num_layers=2, num_heads=2, text_dim=32, time_dim=32, dropout=0.1
)
VOCABULARY, LATENT = 30, 8


def build(config=CONFIG):
    """A model that is no longer at its start, where gates and output are zero."""
    model = FlowMatching(config, VOCABULARY, LATENT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for ours, average in zip(model.network.parameters(), model.ema.parameters(), strict=True):
            average.copy_(ours)
    return model


def batch(lengths=(40, 23, 31), token_lengths=(12, 9, 7)):
    latent = torch.randn(len(lengths), max(lengths), LATENT)
    tokens = torch.randint(VOCABULARY, (len(lengths), max(token_lengths)))
    return latent, torch.tensor(lengths), tokens, torch.tensor(token_lengths)


def draws(latent, hidden=None, **settings):
    if hidden is None:
        hidden = torch.zeros(latent.shape[:2], dtype=torch.bool)
        hidden[:, 4:20] = True
    return FlowDraws(torch.rand(len(latent)), torch.randn_like(latent), hidden, **settings)


def flow_of(model, latent, lengths, tokens, token_lengths, time):
    """The network's prediction in a batch, and of each item alone."""
    condition = latent * (torch.arange(latent.shape[1]) < 5)[None, :, None]
    noisy = torch.randn_like(latent)

    def predict(items, frames, count):
        text = model.ema.text_encoder(tokens[items, :count], token_lengths[items], frames, lengths[items])
        mask = lengths[items] if len(range(*items.indices(len(latent)))) > 1 else None
        return model.ema.transformer(noisy[items, :frames], condition[items, :frames], text, time[items], mask)

    together = predict(slice(0, len(latent)), latent.shape[1], tokens.shape[1])
    alone = [
        predict(slice(item, item + 1), frames, count)[0]
        for item, (frames, count) in enumerate(zip(lengths.tolist(), token_lengths.tolist(), strict=True))
    ]
    return together, alone


# Sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "millions"), [("base", 337.1), ("small", 159.2)])
def test_sizes_are_those_of_f5_tts(preset, millions):
    # F5-TTS's vocabulary and mel bands, for which its sizes are known.
    with torch.device("meta"):
        model = FlowMatching(FlowConfig.preset(preset), vocab_size=2545, latent_dim=100)
    assert sum(parameter.numel() for parameter in model.network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_an_unknown_preset_or_setting_is_named():
    with pytest.raises(ValueError, match="unknown TTS preset 'huge'; choose one of base, small, tiny"):
        FlowConfig.preset("huge")
    with pytest.raises(ValueError, match="unknown setting 'layers'"):
        FlowConfig.from_dict({"layers": 3})
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads"):
        dataclasses.replace(CONFIG, dim=65)
    with pytest.raises(ValueError, match="text_layout must be one of filler, stretched, got 'even'"):
        dataclasses.replace(CONFIG, text_layout="even")
    with pytest.raises(ValueError, match="span"):
        dataclasses.replace(CONFIG, span=(0.9, 0.7))
    assert FlowConfig.from_dict(CONFIG.to_dict()) == CONFIG


# Network -----------------------------------------------------------------------------------------------------------


def test_a_block_starts_as_the_identity_and_the_flow_at_zero():
    model = FlowMatching(CONFIG, VOCABULARY, LATENT).eval()
    latent, lengths, tokens, token_lengths = batch()
    together, _ = flow_of(model, latent, lengths, tokens, token_lengths, torch.rand(3))
    assert together.abs().max() == 0
    x = torch.randn(2, 10, CONFIG.dim)
    block = model.network.transformer.blocks[0]
    assert torch.equal(block(x, torch.randn(2, CONFIG.dim), Rotary(10, 32, 10000.0, x), None), x)


@pytest.mark.parametrize("layout", ["filler", "stretched"])
def test_items_of_a_batch_give_what_they_give_alone(layout):
    model = build(dataclasses.replace(CONFIG, text_layout=layout)).eval()
    latent, lengths, tokens, token_lengths = batch()
    together, alone = flow_of(model, latent, lengths, tokens, token_lengths, torch.rand(3))
    for item, single in enumerate(alone):
        assert single.abs().max() > 0.1
        torch.testing.assert_close(together[item, : lengths[item]], single, atol=2e-5, rtol=1e-4)
        assert together[item, lengths[item] :].abs().sum() == 0


@pytest.mark.parametrize("layout", ["filler", "stretched"])
def test_nothing_in_the_padding_matters(layout):
    model = build(dataclasses.replace(CONFIG, text_layout=layout)).eval()
    latent, lengths, tokens, token_lengths = batch()
    clean = model(latent, lengths, tokens, token_lengths)
    for item in range(3):
        latent[item, lengths[item] :] = 1e4
        tokens[item, token_lengths[item] :] = 7
    dirty = model(latent, lengths, tokens, token_lengths)
    torch.testing.assert_close(clean.item_losses, dirty.item_losses, atol=1e-6, rtol=1e-5)


def test_the_response_norm_counts_tokens_only():
    encoder = TextEncoder(CONFIG, VOCABULARY).eval()
    with torch.no_grad():
        for block in encoder.blocks:
            block.response_norm.gamma.fill_(1.0)
            # A bias that would make padding loud.
            block.up.bias.fill_(3.0)
    tokens = torch.randint(VOCABULARY, (1, 6))
    alone = encoder(tokens, torch.tensor([6]), 6, torch.tensor([6]))
    padded = encoder(torch.cat([tokens, tokens], 1), torch.tensor([6]), 40, torch.tensor([40]))
    torch.testing.assert_close(padded[:, :6], alone)
    assert padded[:, 6:].abs().sum() == 0


def test_text_longer_than_the_speech_is_cut():
    encoder = TextEncoder(CONFIG, VOCABULARY).eval()
    tokens = torch.randint(VOCABULARY, (1, 20))
    eight = torch.tensor([8])
    torch.testing.assert_close(encoder(tokens, torch.tensor([20]), 8, eight), encoder(tokens[:, :8], eight, 8, eight))


def test_stretched_text_is_spread_evenly_over_each_items_own_frames():
    filler = TextEncoder(CONFIG, VOCABULARY).eval()
    stretched = TextEncoder(dataclasses.replace(CONFIG, text_layout="stretched"), VOCABULARY).eval()
    stretched.load_state_dict(filler.state_dict())
    tokens = torch.randint(VOCABULARY, (3, 4))
    counts, frames = torch.tensor([4, 3, 0]), torch.tensor([10, 7, 5])
    text, spread = filler(tokens, counts, 10, frames), stretched(tokens, counts, 10, frames)
    torch.testing.assert_close(spread[0], text[0, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]])
    torch.testing.assert_close(spread[1, :7], text[1, [0, 0, 0, 1, 1, 2, 2]])
    assert spread[1, 7:].abs().sum() == 0 and spread[2].abs().sum() == 0


def test_order_and_time_matter():
    model = build().eval()
    latent, _, tokens, token_lengths = batch((20,), (8,))
    text = model.ema.text_encoder(tokens, token_lengths, 20, torch.tensor([20]))
    turned = model.ema.text_encoder(tokens.flip(1), token_lengths, 20, torch.tensor([20]))
    assert not torch.allclose(text.sum(1), turned.sum(1), atol=1e-3)
    x = torch.randn(1, 20, LATENT)
    early, late = (model.ema.transformer(x, latent, text, torch.tensor([t]), None) for t in (0.1, 0.11))
    assert (early - late).abs().max() > 1e-4
    swapped = torch.cat([x[:, 10:], x[:, :10]], 1)
    moved = model.ema.transformer(swapped, latent, text, torch.tensor([0.1]), None)
    assert not torch.allclose(torch.cat([moved[:, 10:], moved[:, :10]], 1), early, atol=1e-3)


# Objective ---------------------------------------------------------------------------------------------------------


def test_the_loss_counts_hidden_frames_and_nothing_else():
    model = build()
    latent, lengths, tokens, token_lengths = batch()
    chance = draws(latent)
    model.eval()
    out = model(latent, lengths, tokens, token_lengths, chance)
    time = chance.time[:, None, None]
    text = model.ema.text_encoder(tokens, token_lengths, 40, lengths)
    noisy = ((1 - time) * chance.noise + time * latent) * (torch.arange(40) < lengths[:, None])[..., None]
    condition = latent.clone()
    condition[:, 4:20] = 0
    condition *= (torch.arange(40) < lengths[:, None])[..., None]
    flow = model.ema.transformer(noisy, condition, text, chance.time, lengths)
    errors = (flow - (latent - chance.noise)).square()[:, 4:20]
    torch.testing.assert_close(out.loss, errors.mean())
    assert out.frames.tolist() == [16, 16, 16]
    torch.testing.assert_close(out.item_losses, errors.mean((1, 2)))


def test_what_is_hidden_does_not_reach_the_condition():
    """At time 0 the network sees noise and condition alone, so the hidden latent must not change its prediction."""
    model = build().eval()
    latent, lengths, tokens, token_lengths = batch((40, 40, 40))
    chance = draws(latent)
    chance = dataclasses.replace(chance, time=torch.zeros(3))
    seen = []
    handle = model.ema.transformer.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    model(latent, lengths, tokens, token_lengths, chance)
    other = latent.clone()
    other[:, 4:20] = torch.randn(3, 16, LATENT)
    model(other, lengths, tokens, token_lengths, chance)
    other[:, 30] += 1
    model(other, lengths, tokens, token_lengths, chance)
    handle.remove()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_dropped_conditions_have_no_influence():
    model = build().eval()
    latent, lengths, tokens, token_lengths = batch((40, 40, 40))
    chance = dataclasses.replace(draws(latent), time=torch.zeros(3))
    seen = []
    handle = model.ema.transformer.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    others = (latent + torch.randn_like(latent), lengths, (tokens + 1) % VOCABULARY, token_lengths)
    for audio, text in ((False, False), (True, False), (True, True)):
        dropped = dataclasses.replace(chance, drop_audio=audio, drop_text=text)
        model(latent, lengths, tokens, token_lengths, dropped)
        model(others[0], lengths, tokens, token_lengths, dropped)
        model(*others, dropped)
    handle.remove()
    plain, audio, both = seen[:3], seen[3:6], seen[6:]
    assert not torch.equal(plain[0], plain[1]) and not torch.equal(plain[1], plain[2])
    assert torch.equal(audio[0], audio[1]) and not torch.equal(audio[1], audio[2])
    assert torch.equal(both[0], both[1]) and torch.equal(both[1], both[2])


def test_the_null_of_guidance_is_what_training_dropped():
    model = build().eval()
    latent, lengths, tokens, token_lengths = batch((40, 40, 40))
    chance = draws(latent, drop_audio=True, drop_text=True)
    seen = []
    handle = model.ema.transformer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    model(latent, lengths, tokens, token_lengths, chance)
    model.sample(tokens, token_lengths, lengths, latent[:, :10], steps=1)
    handle.remove()
    (_, condition, text, _, _), (_, both, texts, _, _) = seen
    assert torch.equal(condition, both[3:]) and torch.equal(text, texts[3:])
    assert both[:3].abs().sum() > 0 and texts[:3].abs().sum() > 0


def test_draws_have_the_right_odds():
    lengths = torch.tensor([100, 50, 30, 3])
    latent = torch.zeros(4, 100, LATENT)
    parts, kinds = [], []
    for _ in range(2000):
        found = random_draws(CONFIG, latent, lengths)
        hidden = found.hidden
        counts = hidden.sum(1)
        # One span, inside the utterance.
        assert ((hidden[:, 1:] != hidden[:, :-1]).sum(1) <= 2).all()
        assert not any(hidden[item, length:].any() for item, length in enumerate(lengths))
        parts.append(counts / lengths)
        kinds.append((found.drop_audio, found.drop_text))
    parts = torch.stack(parts)
    assert parts[:, 0].min() >= 0.69 and parts[:, 0].max() <= 1.0
    assert parts[:, 0].mean() == pytest.approx(0.845, abs=0.01)
    shares = {kind: kinds.count(kind) / 2000 for kind in set(kinds)}
    assert shares.keys() == {(False, False), (True, False), (True, True)}
    assert shares[False, False] == pytest.approx(0.56, abs=0.04)
    assert shares[True, False] == pytest.approx(0.24, abs=0.04)
    assert shares[True, True] == pytest.approx(0.20, abs=0.04)


def test_every_weight_gets_a_gradient_even_where_all_is_dropped():
    model = build()
    latent, lengths, tokens, token_lengths = batch()
    model(latent, lengths, tokens, token_lengths, draws(latent, drop_audio=True, drop_text=True)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.network.parameters())
    assert all(parameter.grad is None for parameter in model.ema.parameters())
    assert model.network.text_encoder.embedding.weight.grad.abs().sum() == 0


def test_evaluation_is_the_same_every_time_and_in_every_batch():
    model = build().eval()
    latent, lengths, tokens, token_lengths = batch()
    first = model(latent, lengths, tokens, token_lengths)
    torch.manual_seed(99)
    torch.testing.assert_close(first.item_losses, model(latent, lengths, tokens, token_lengths).item_losses)
    for item in range(3):
        frames, count = int(lengths[item]), int(token_lengths[item])
        alone = model(latent[item : item + 1, :frames], None, tokens[item : item + 1, :count], None)
        torch.testing.assert_close(alone.item_losses[0], first.item_losses[item], atol=1e-5, rtol=1e-4)
        assert alone.frames[0] == first.frames[item]
    weighted = (first.item_losses * first.frames).sum() / first.frames.sum()
    torch.testing.assert_close(first.loss, weighted)


# The moving average ------------------------------------------------------------------------------------------------


def train(model, optimizer, steps, accumulate=1):
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        for _ in range(accumulate):
            latent, lengths, tokens, token_lengths = batch()
            torch.manual_seed(step)
            model(latent, lengths, tokens, token_lengths).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return generator


class DataSGD(torch.optim.Optimizer):
    """An optimiser that assigns to `.data`, as some third-party ones do."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data = parameter.data - group["lr"] * parameter.grad


OPTIMISERS = {
    "fused": functools.partial(torch.optim.AdamW, lr=1e-2, fused=True),
    "foreach": functools.partial(torch.optim.AdamW, lr=1e-2, foreach=True),
    "for-loop": functools.partial(torch.optim.AdamW, lr=1e-2, foreach=False),
    "fused Adam": functools.partial(torch.optim.Adam, lr=1e-2, fused=True),
    "data": functools.partial(DataSGD, lr=1e-1),
}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_the_average_follows_the_optimisers_steps(kind, accumulate):
    model = FlowMatching(dataclasses.replace(CONFIG, ema_decay=0.5), VOCABULARY, LATENT)
    optimizer = OPTIMISERS[kind](model.network.parameters())
    weight, average = model.network.transformer.out_proj.weight, model.ema.transformer.out_proj.weight
    expected = weight.detach().clone()
    for step in range(6):
        train(model, optimizer, 1, accumulate)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = expected.lerp(weight.detach(), 1 - decay)
        model.update_average()
        model.update_average()
        torch.testing.assert_close(average, expected)
    assert int(model.ema_steps) == 6
    assert not torch.allclose(average, weight)


def test_a_step_that_changes_a_single_weight_counts():
    model = FlowMatching(CONFIG, VOCABULARY, LATENT)
    model.update_average()
    with torch.no_grad():
        # The smallest change there is, of the last weight.
        bias = list(model.network.parameters())[-1]
        bias[-1] = torch.nextafter(bias[-1], torch.tensor(1.0))
    model.update_average()
    assert int(model.ema_steps) == 1


def test_moving_and_casting_are_no_steps():
    model = FlowMatching(CONFIG, VOCABULARY, LATENT)
    train(model, OPTIMISERS["fused"](model.network.parameters()), 2)
    model.double().float().to("cpu")
    model.update_average()
    assert int(model.ema_steps) == 2  # the second step was seen before the cast


def test_the_average_survives_saving_resuming_and_copying():
    model = FlowMatching(CONFIG, VOCABULARY, LATENT)
    train(model, torch.optim.AdamW(model.parameters(), 1e-2), 3)
    state = copy.deepcopy(model.state_dict())
    # The last step is in it although no call followed.
    assert int(state["ema_steps"]) == 3
    again = FlowMatching(CONFIG, VOCABULARY, LATENT)
    again.load_state_dict(state)
    again.eval()
    latent, lengths, tokens, token_lengths = batch()
    again(latent, lengths, tokens, token_lengths)
    copied = copy.deepcopy(model)
    copied.update_average()
    for other in (again, copied):
        assert int(other.ema_steps) == 3
        for name, value in other.state_dict().items():
            assert torch.equal(value, state[name]), name
    train(again.train(), torch.optim.AdamW(again.parameters(), 1e-2), 1)
    assert int(again.state_dict()["ema_steps"]) == 4


def test_initialising_anew_before_training_reaches_the_average():
    model = FlowMatching(CONFIG, VOCABULARY, LATENT)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.eval()
    model(*batch())
    for ours, average in zip(model.network.parameters(), model.ema.parameters(), strict=True):
        assert torch.equal(ours, average)


def test_evaluation_and_sampling_use_the_average():
    model = build().eval()
    latent, lengths, tokens, token_lengths = batch()
    before = model(latent, lengths, tokens, token_lengths).loss
    sampled, _ = model.sample(tokens, token_lengths, lengths, steps=2, seeds=0)
    state = model.state_dict()
    model.load_state_dict(
        {name: torch.randn_like(value) if name.startswith("network.") else value for name, value in state.items()}
        | {"ema_steps": torch.tensor(1)}
    )
    assert torch.equal(model(latent, lengths, tokens, token_lengths).loss, before)
    assert torch.equal(model.sample(tokens, token_lengths, lengths, steps=2, seeds=0)[0], sampled)


def test_nothing_is_dropped_from_the_average_in_training():
    model = build(dataclasses.replace(CONFIG, dropout=0.5))  # as it is after construction, and after a step
    _, lengths, tokens, token_lengths = batch()

    def sample():
        return model.sample(tokens, token_lengths, lengths, steps=2, seeds=0)[0]

    assert model.training and torch.equal(sample(), sample())
    assert torch.equal(model.train().network.training and sample(), model.eval() and sample())
    assert not any(module.training for module in model.modules())


def test_two_processes_keep_the_same_average(tmp_path):
    script = ROOT / "tests" / "helpers" / "tts_ranks.py"
    processes = [subprocess.Popen([sys.executable, script, str(rank), tmp_path]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert int(first["ema_steps"]) == 8
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    name = "transformer.out_proj.weight"
    assert (first[f"network.{name}"] - first[f"ema.{name}"]).abs().max() > 1e-4


# Sampling ----------------------------------------------------------------------------------------------------------


def test_a_seed_makes_sampling_repeatable_and_free_of_batch_mates():
    model = build().eval()
    latent, lengths, tokens, token_lengths = batch()
    prompt, prompt_lengths = latent[:, :9], torch.tensor([9, 0, 5])
    together, frames = model.sample(tokens, token_lengths, lengths, prompt, prompt_lengths, steps=4, seeds=3)
    again, _ = model.sample(tokens, token_lengths, lengths, prompt, prompt_lengths, steps=4, seeds=3)
    assert torch.equal(together, again) and torch.equal(frames, lengths)
    other, _ = model.sample(tokens, token_lengths, lengths, prompt, prompt_lengths, steps=4, seeds=4)
    assert (other[1] - together[1]).abs().max() > 0.1
    for item in range(3):
        count, known = int(token_lengths[item]), int(prompt_lengths[item])
        alone, _ = model.sample(
            tokens[item : item + 1, :count],
            None,
            lengths[item : item + 1],
            prompt[item : item + 1, :known] if known else None,
            steps=4,
            seeds=[3],
        )
        torch.testing.assert_close(together[item, : lengths[item]], alone[0], atol=1e-4, rtol=1e-4)
        assert torch.equal(together[item, :known], prompt[item, :known])
        assert together[item, lengths[item] :].abs().sum() == 0


def test_sampling_solves_the_flow():
    """With a network that knows the flow to a target, every schedule and guidance of it ends there."""
    model = build().eval()
    target = torch.randn(1, 20, LATENT)

    def perfect(x, condition, text, time, lengths):
        return (target - x) / (1 - time[:, None, None])

    model.ema.transformer.forward = perfect
    for steps, sway, guidance in itertools.product((1, 4, 32), (-1.0, 0.0, 1.0), (0.0, 2.0)):
        found, _ = model.sample(
            torch.zeros(1, 5, dtype=torch.int64), None, [20], steps=steps, sway=sway, guidance=guidance, seeds=1
        )
        torch.testing.assert_close(found, target, atol=1e-4, rtol=1e-4)


def test_guidance_goes_away_from_the_null():
    model = build().eval()
    latent, lengths, tokens, token_lengths = batch((20,), (6,))
    noise = initial_noise(lengths, 20, LATENT, 0)
    text = model.ema.text_encoder(tokens, token_lengths, 20, torch.tensor([20]))
    zero, start = torch.zeros_like(latent), torch.zeros(1)
    given = model.ema.transformer(noise, zero, text, start, None)
    free = model.ema.transformer(noise, zero, torch.zeros_like(text), start, None)
    for guidance in (0.0, 2.0):
        found, _ = model.sample(tokens, token_lengths, lengths, steps=1, guidance=guidance, seeds=0)
        torch.testing.assert_close(found, noise + given + guidance * (given - free), atol=1e-5, rtol=1e-4)


def test_the_schedule_sways():
    assert schedule(4, 0.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    swayed = schedule(4, -1.0)
    assert swayed[0] == 0 and swayed[-1] == pytest.approx(1)
    assert swayed[2] == pytest.approx(1 - math.cos(math.pi / 4))
    assert all(later > earlier for earlier, later in itertools.pairwise(swayed))
    assert all(a < b for a, b in zip(swayed[1:-1], schedule(4, 0.0)[1:-1], strict=True))


def test_bad_input_is_named():
    model = build().eval()
    latent, lengths, tokens, token_lengths = batch()
    with pytest.raises(ValueError, match=r"\(batch, frames, 8\), got \(3, 40, 4\)"):
        model(latent[..., :4], lengths, tokens, token_lengths)
    with pytest.raises(ValueError, match=r"token ids must lie in 0 … 29, got 0 … 30"):
        model(latent, lengths, torch.full_like(tokens, 30), token_lengths)
    with pytest.raises(ValueError, match=r"lengths must lie in 1 … 40 frames, got 0 … 40"):
        model(latent, torch.tensor([40, 0, 3]), tokens, token_lengths)
    with pytest.raises(ValueError, match="12 tokens do not fit into 10 frames; lower the speaking rate"):
        model.sample(tokens, token_lengths, [10, 20, 20])
    with pytest.raises(ValueError, match="frames behind the prompts"):
        model.sample(tokens, token_lengths, [20, 20, 20], latent[:, :20])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        model.sample(tokens, token_lengths, lengths, steps=0)
    with pytest.raises(ValueError, match="sway must lie in"):
        model.sample(tokens, token_lengths, lengths, sway=-2.0)
    with pytest.raises(ValueError, match="got 2 seeds for 3 items"):
        model.sample(tokens, token_lengths, lengths, seeds=[1, 2])
    with pytest.raises(ValueError, match="the model has seen no speech"):
        model.tokens_to_frames(5)


# Scale and lengths -------------------------------------------------------------------------------------------------


def test_the_latent_gets_unit_variance_and_back():
    latents = [3 + torch.tensor([1.0, 10.0, 0.0]) * torch.randn(length, 3) for length in (500, 800)]
    norm = LatentNorm(3).fit(latents)
    together = norm(torch.cat(latents)[None])
    torch.testing.assert_close(together.mean((0, 1)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(together.std((0, 1))[:2], torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(norm.inverse(together)[0], torch.cat(latents), atol=1e-4, rtol=1e-5)
    padded = norm(torch.ones(2, 4, 3), torch.tensor([4, 2]))
    assert padded[1, 2:].abs().sum() == 0 and padded[0, 2:].abs().sum() > 0


def test_the_length_rule():
    # 100 frames of prompt for 20 bytes, 40 bytes to say.
    assert new_frames(100 / 20, "x" * 40) == 200
    assert new_frames(100 / 20, "x" * 40, speed=2.0) == 100
    assert new_frames(100 / 20, "é" * 20) == 200
    # Short texts are spoken slowly whatever is wanted.
    assert new_frames(5.0, "no", speed=2.0) == int(10 / 0.3)
    with pytest.raises(ValueError, match="speed and rate must be positive"):
        new_frames(5.0, "some text here", speed=0.0)


def test_tokens_take_the_time_they_took_in_training():
    model = FlowMatching(CONFIG, VOCABULARY, LATENT)
    latent, lengths, tokens, token_lengths = batch()
    model(latent, lengths, tokens, token_lengths)
    model(latent, lengths, tokens, token_lengths)
    model.eval()
    model(latent[:1], None, tokens[:1], None)
    assert model.tokens_to_frames(10) == pytest.approx(10 * 94 / 28)
    # Half precision, which cannot count so far, leaves the counts alone.
    model.frames_seen += 10**9
    assert int(model.half().frames_seen) == 188 + 10**9


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One. Two.", ["One. Two."]),
        ("A first sentence. A second one. Third!", ["A first sentence.", "A second one.", "Third!"]),
        ("ab, cd, ef, gh, ij, kl, mn", ["ab, cd, ef, gh, ij,", "kl, mn"]),
        ("no punctuation in this long line", ["no punctuation in", "this long line"]),
        ("supercalifragilisticexpialidocious yes", ["supercalifragilisticexpialidocious", "yes"]),
        ("你好，世界。再见", ["你好，世界。", "再见"]),
        ("  spaces   ", ["spaces"]),
    ],
)
def test_long_texts_are_cut_at_punctuation_then_at_words(text, pieces):
    found = split_text(text, 19)
    assert found == pieces
    assert "".join(found).replace(" ", "") == text.replace(" ", "")


def test_pieces_fade_into_each_other():
    joined = cross_fade([torch.ones(100), -torch.ones(80), torch.ones(5)], 10)
    assert len(joined) == 100 + 80 - 10 + 5 - 5
    assert joined[:90].eq(1).all() and joined[100:165].eq(-1).all()
    torch.testing.assert_close(joined[90:100], torch.linspace(1, -1, 10))
    assert len(cross_fade([torch.ones(7)], 10)) == 7
