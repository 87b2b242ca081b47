"""Linear probes find what is there and nothing else, and the measurement of nano runs from end to end."""

import contextlib
import importlib
import io
import json
import math
import shutil

import pytest
import torch

from wavcube_plugins import WavCube, load_model
from wavcube_plugins.audio import read_audio
from wavcube_plugins.checkpoints import save_model
from wavcube_plugins.checkpoints.backbones import save_backbone
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.evaluation.probes import (
    LinearProbe,
    PhoneItem,
    collapse,
    fit_phone_probe,
    fit_probe,
    frame_labels,
    log_mel_frames,
    phone_probe,
    pool,
    score_phones,
    speaker_probe,
)
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.pretraining.runs import PARTS, start_stage1, trained_weights, write_run
from wavcube_plugins.synthetic.bundled import bundled_speech

pytestmark = pytest.mark.slow

SILENCE, LABELS, CHANNELS = 4, 5, 12


@pytest.fixture(scope="module")
def measure():
    """The module `nano.measure`."""
    return importlib.import_module("wavcube_plugins.nano.measure")


def utterances(count, seed, distance):
    """Phones of four frames each, with features as far apart as told."""
    generator = torch.Generator().manual_seed(seed)
    centres = distance * torch.eye(LABELS, CHANNELS)
    items = []
    for _ in range(count):
        phones = torch.unique_consecutive(torch.randint(LABELS, (20,), generator=generator))
        labels = phones.repeat_interleave(4)
        features = centres[labels] + torch.randn(len(labels), CHANNELS, generator=generator)
        items.append(PhoneItem(features, phones.tolist(), labels))
    return items


def test_a_phone_probe_finds_what_is_there():
    scores = phone_probe(utterances(30, 0, 12.0), utterances(10, 1, 12.0), LABELS, silence=SILENCE)
    assert scores.frame_accuracy == 1 and scores.phone_error_rate == 0
    assert scores.frames > scores.phones > 50


def test_a_phone_probe_finds_nothing_in_noise():
    train, test = utterances(60, 0, 0.0), utterances(40, 1, 0.0)
    scores = phone_probe(train, test, LABELS, silence=SILENCE)
    assert scores.frame_accuracy == pytest.approx(1 / LABELS, abs=0.04)
    assert scores.phone_error_rate > 0.6


def test_a_probe_is_the_same_every_time_and_for_every_scale():
    train, test = utterances(30, 0, 2.0), torch.cat([item.features for item in utterances(20, 1, 2.0)])
    first, again = (fit_phone_probe(train, LABELS) for _ in range(2))
    assert torch.equal(first.weight, again.weight) and torch.equal(first.bias, again.bias)
    expected = first(test)
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS)).Q
    for change in (torch.diag(torch.logspace(-3, 3, CHANNELS)), 100 * turn):
        changed = [PhoneItem(item.features @ change + 50, item.phones, item.labels) for item in train]
        agreement = (fit_phone_probe(changed, LABELS)(test @ change + 50) == expected).float().mean()
        assert agreement > 0.99


def test_constant_features_do_no_harm():
    features = torch.cat([torch.randn(50, 2), torch.full((50, 1), 7.0)], 1)
    labels = (features[:, 0] > 0).long()
    probe = fit_probe(features, labels, 2)
    features[:, 2] = 7.001
    assert (probe(features) == labels).float().mean() > 0.95


def test_collapsing():
    assert collapse([0, 0, 1, 4, 4, 1, 2, 2, 0], silence=4) == [0, 1, 1, 2, 0]
    # Single frames go, and what they were between is one again.
    assert collapse([0, 0, 1, 0, 0, 2, 3, 3, 4, 3, 3], silence=4, shortest=2) == [0, 3]
    assert collapse([], silence=4) == []


def test_phone_errors_by_hand():
    # Reads labels off one-hot features.
    probe = LinearProbe(torch.eye(LABELS), torch.zeros(LABELS))

    def item(seen, phones, labels=None):
        features = torch.nn.functional.one_hot(torch.tensor(seen), LABELS).float()
        return PhoneItem(features, phones, None if labels is None else torch.tensor(labels))

    timed = item([4, 4, 0, 0, 1, 1, 3, 2, 2, 4], [4, 0, 1, 2, 4], [4, 0, 0, 0, 1, 1, 2, 2, 2, 4])
    # Heard 0 1 1, said 0 2 1 3 1: one deleted and a third replaced by nothing.
    untimed = item([0, 0, 1, 1, 4, 4, 1, 1], [0, 2, 1, 4, 3, 1])
    assert score_phones(probe, [timed], silence=4).phone_error_rate == 0
    assert score_phones(probe, [timed], silence=4).frame_accuracy == pytest.approx(8 / 10)
    scores = score_phones(probe, [timed, untimed], silence=4)
    assert (scores.frames, scores.phones) == (10, 8)
    assert scores.phone_error_rate == pytest.approx(2 / 8)
    assert scores.frame_accuracy == pytest.approx(8 / 10)
    assert math.isnan(score_phones(probe, [untimed], silence=4).frame_accuracy)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PhoneItem(torch.zeros(3, 2), [0], torch.zeros(4).long()), "3 frames of features but 4 labels"),
        (lambda: PhoneItem(torch.zeros(3), [0]), r"shape \(frames, channels\), got \(3,\)"),
        (lambda: phone_probe([], [], 2, silence=1), "frames all have labels"),
        (lambda: phone_probe([PhoneItem(torch.zeros(3, 2), [0])], [], 2, silence=1), "frames all have labels"),
        (lambda: fit_probe(torch.zeros(3, 2), torch.tensor([0, 1, 2]), 2), r"0 … 1, got 0 … 2"),
        (lambda: fit_probe(torch.full((3, 2), torch.nan), torch.tensor([0, 1, 1]), 2), "NaN"),
        (lambda: fit_probe(torch.zeros(3, 2), torch.zeros(2).long(), 2), r"got \(3, 2\) and \(2,\)"),
        (lambda: score_phones(LinearProbe(torch.eye(2), torch.zeros(2)), [], silence=1), "no phones"),
        (lambda: speaker_probe([], []), "needs utterances"),
        (lambda: speaker_probe([(torch.zeros(2), "a")], [(torch.zeros(2), "b")]), "no utterance of the speaker b"),
    ],
)
def test_what_cannot_be_probed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_speaker_probe_finds_means_and_deviations():
    def speech(seed):
        generator = torch.Generator().manual_seed(seed)
        for index in range(200):
            speaker = index % 4
            features = torch.randn(60, CHANNELS, generator=generator)
            features[:, 0] += speaker // 2
            features[:, 1] *= 1 + 3 * (speaker % 2)
            yield pool(features), f"speaker {speaker}"

    scores = speaker_probe(list(speech(0)), list(speech(1)))
    assert (scores.accuracy, scores.utterances, scores.speakers) == (1.0, 200, 4)
    shuffled = [(pooled, f"speaker {index * 7 % 11 % 4}") for index, (pooled, _) in enumerate(speech(1))]
    assert speaker_probe(list(speech(0)), shuffled).accuracy < 0.5
    assert torch.isfinite(pool(torch.randn(1, CHANNELS))).all()


def test_a_frame_has_the_phone_at_its_centre():
    # Centres at 12.5, 32.5, 52.5 and 72.5 ms.
    assert frame_labels([("SIL", 0.0, 0.0125), ("AA", 0.0125, 0.05), ("B", 0.05, 0.06)], 4) == ["AA", "AA", "B", "B"]


@pytest.mark.parametrize(("sample", "frames"), [(3200 + 200, [10]), (3200 + 360, [10, 11]), (3200 + 40, [9, 10])])
def test_an_impulse_shows_in_the_frames_that_cover_it(sample, frames):
    waveform = torch.zeros(16000)
    waveform[sample] = 1.0
    energy = log_mel_frames(waveform).mean(1)
    assert torch.nonzero(energy > energy.median() + 1).flatten().tolist() == frames


def test_a_tone_shows_in_its_band_whatever_its_level():
    time = torch.arange(8000) / 16000
    features = [log_mel_frames(0.5 * torch.sin(2 * torch.pi * hertz * time)).mean(0) for hertz in (100, 1000, 7000)]
    bands = [int(feature.argmax()) for feature in features]
    assert bands[0] < 6 and 25 < bands[1] < 31 and bands[2] > 72
    speech = torch.randn(8000)
    torch.testing.assert_close(log_mel_frames(0.01 * speech), log_mel_frames(speech), atol=1e-3, rtol=0)


def test_log_mel_has_the_frames_of_the_encoders():
    encoder = WavLM(WavCubeConfig.preset("tiny").wavlm)
    for samples in (100, 400, 719, 720, 16000):
        assert len(log_mel_frames(torch.randn(samples))) == int(encoder.frame_lengths(torch.tensor([samples])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of bundled speech with made-up times, models of stage 1 (a run) and 2, a teacher, and recordings."""
    folder = tmp_path_factory.mktemp("measure")
    speech = [one for one in bundled_speech() if one.speaker in ("adam", "beth", "callum")]
    splits = {
        "train": [one for one in speech if one.speaker != "callum" and one.name[-2:] < "07"],
        "valid": [one for one in speech if one.name[-2:] == "07"],
        "test": [one for one in speech if "07" < one.name[-2:] < "11"],
    }
    corpus = folder / "corpus"
    for split, items in splits.items():
        lines = []
        for one in items:
            (corpus / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(one.path, corpus / split / one.path.name)
            record = {"id": one.name, "path": f"{split}/{one.path.name}", "duration": one.seconds}
            record |= {"speaker": one.speaker, "text": one.text, "augmentation": []}
            if one.speaker == "beth":
                record["pronunciation"] = list(one.phones)
            else:
                step = one.seconds / len(one.phones)
                record["phones"] = [[p, i * step, (i + 1) * step] for i, p in enumerate(one.phones)]
            lines.append(json.dumps(record))
        (corpus / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    config = WavCubeConfig.preset("tiny")
    teacher = WavLM(config.wavlm)
    save_backbone(teacher, folder / "teacher")
    start = start_stage1(config, teacher)
    write_run(folder / "run", start, 1, {})
    checkpoint = folder / "run" / "save" / "CKPT+1"
    checkpoint.mkdir(parents=True)
    for part in PARTS:
        (checkpoint / part).touch()
    torch.save(trained_weights(start.model, 1), checkpoint / "model.ckpt")
    (checkpoint / "CKPT.yaml").write_text("step: 3\nunixtime: 1.0\n")
    for name in ("second", "ablation"):
        model = WavCube(config)
        model.metadata = {"stage": "2"}
        save_model(model, folder / name)

    recordings = folder / "recordings"
    recordings.mkdir()
    (recordings / "notes.wav").write_text("no audio")
    rows = ["file\tspeaker\tseconds\ttext\tphones"]
    for index, one in enumerate(speech[:2] + speech[12:14]):
        shutil.copy(one.path, recordings / f"spk{index // 2}_snt{index}.flac")
        rows.append(f"spk{index // 2}_snt{index}.flac\tspk{index // 2}\t2.0\t\tdh ax vcl d ao vcl g")
    (recordings / "transcripts.tsv").write_text("\n".join(rows) + "\n")
    return folder


def command(folder, out, **changes):
    """The arguments of a quick run; an argument that is None is left out."""
    options = {"corpus": "corpus", "stage1": "run", "stage2": "second"} | changes
    given = [word for name, value in options.items() if value for word in (f"--{name}", str(folder / value))]
    return [*given, "--quick", "--out", str(out)]


@pytest.fixture(scope="module")
def measured(measure, folder):
    """What a quick run with everything prints, as (stdout, stderr); it writes all/results.json and examples/."""
    options = {"no-anchoring": "ablation", "recordings": "recordings", "examples": "examples"}
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert measure.main(command(folder, folder / "all" / "results.json", **options)) == 0
    return out.getvalue(), err.getvalue()


def test_the_measurement_runs_from_end_to_end(folder, measured):
    out = folder / "all" / "results.json"
    assert "notes.wav: not readable" in measured[1]
    results = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    models = ["stage 1", "stage 2", "without anchoring"]
    assert list(results["reconstruction"]) == models
    assert results["models"]["stage 1"]["global_step"] == "3"
    for groups in results["reconstruction"].values():
        assert {group: scores["utterances"] for group, scores in groups.items()} == {
            **{"known speakers": 2, "new speakers": 2, "all synthesised": 4, "demo sentences": 2, "real, spk*": 4},
        }
        assert all(0 < scores["stoi"] < 1 and 1 < scores["pesq"] < 5 for scores in groups.values())
    means = [results["reconstruction"]["stage 2"][name]["stoi"] for name in ("known speakers", "new speakers")]
    assert results["reconstruction"]["stage 2"]["all synthesised"]["stoi"] == pytest.approx(sum(means) / 2, abs=1e-3)
    assert len(results["utterances"]) == 3 * 10

    assert list(results["probes"]) == ["teacher", *models, "log-mel"]
    latent_dim = WavCubeConfig.preset("tiny").bottleneck.latent_dim
    assert results["probes"]["stage 1"]["channels"] == latent_dim and results["probes"]["log-mel"]["channels"] == 80
    for scores in results["probes"].values():
        assert set(scores["phones"]) == {"test", "known speakers", "new speakers", "Pico's voices", "real recordings"}
        assert 0 < scores["phones"]["test"]["frame_accuracy"] <= 100
        assert "frame_accuracy" not in scores["phones"]["real recordings"]
        assert scores["phones"]["real recordings"]["phones"] == 4 * 5
        assert scores["speakers"]["speakers"] == 2 and scores["real_speakers"]["utterances"] == 4
    # Even of so little speech, log-mel tells a man from a woman.
    assert results["probes"]["log-mel"]["speakers"]["accuracy"] == 100

    lines = measured[0].splitlines()
    assert lines[0].startswith("| STOI / PESQ-WB | known speakers (2) |") and len(lines) == 5 + 1 + 7 + 2
    assert all(line.count("|") == lines[0].count("|") for line in lines[:5])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    examples = folder / "examples"
    names = {path.name for path in examples.iterdir()}
    assert len(names) == 4 * (1 + 2 * 3)
    original = read_audio(examples / "real_spk_spk0_snt0.original.flac")
    assert len(read_audio(examples / "real_spk_spk0_snt0.stage_2.flac")) == len(original)
    assert (examples / "real_spk_spk0_snt0.without_anchoring.png").exists()


def test_the_same_numbers_every_time_and_without_what_is_optional(measure, folder, measured, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert measure.main(command(folder, out, teacher="teacher")) == 0
    first, again = (json.loads(path.read_text()) for path in (folder / "all" / "results.json", out))
    assert list(again["probes"]) == ["teacher", "stage 1", "stage 2", "log-mel"]
    for model, groups in again["reconstruction"].items():
        assert groups == {group: first["reconstruction"][model][group] for group in groups}
    for name, scores in again["probes"].items():
        assert scores["speakers"] == first["probes"][name]["speakers"]
        assert scores["phones"] == {part: first["probes"][name]["phones"][part] for part in scores["phones"]}
    assert "real" not in capsys.readouterr().out.lower()


def test_latents_of_half_the_rate_are_probed_at_the_same_frames(measure):
    config = WavCubeConfig.preset("tiny")
    slow = WavCube(measure.dataclasses.replace(config, bottleneck=measure.dataclasses.replace(
        config.bottleneck, frame_stride=2
    ))).eval()  # fmt: skip
    representations = measure.Representations(WavLM(config.wavlm).eval(), {"stage 1": slow})
    found = representations(torch.randn(400 + 320 * 6))
    assert {name: len(features) for name, features in found.items()} == {"teacher": 7, "stage 1": 7, "log-mel": 7}
    assert torch.equal(found["stage 1"][2], found["stage 1"][3])


def test_a_frozen_encoder_runs_once_and_gives_the_same(measure):
    model = load_model("tiny")
    waveform = torch.randn(8000)
    found = measure.Representations(model.wavlm, {"stage 1": model})(waveform)
    torch.testing.assert_close(found["stage 1"], model.encode(waveform[None])[0][0])
    torch.testing.assert_close(found["teacher"], model.hidden_states(waveform[None])[0][-1][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "nowhere"}, "train.jsonl: no such file; make the corpus"),
        ({"stage1": "nowhere"}, "nowhere: no such folder"),
        ({"stage1": "second"}, "second: is a model of stage 2, one of stage 1 was expected"),
        ({"stage2": "run"}, "run: is a model of stage 1, one of stage 2 was expected"),
        ({"stage2": "recordings"}, "recordings: "),
        ({"teacher": "nowhere"}, "nowhere: no such folder"),
        ({"recordings": "nowhere"}, "nowhere: no such folder"),
        ({"recordings": "corpus"}, "corpus: no audio files that can be read"),
    ],
)
def test_bad_input_is_one_sentence(measure, folder, tmp_path, capsys, changes, message):
    assert measure.main(command(folder, tmp_path / "out.json", **changes)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("measure.py: error: ") and message in error[-1]
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: an utterance has an id"),
        ('{"id": "a", "path": "a.flac", "speaker": "b", "phones": [["AA", 0]]}', "line 1: phones are lists of"),
        ('{"id": "a", "path": "a.flac", "speaker": "b", "pronunciation": ["QQ"]}', "line 1: 'QQ' is no phone"),
        ('{"id": "a", "path": "a.flac", "speaker": "b", "phones": []}', "line 1: the list of phones is empty"),
        ('{"id": "a", "path": "a.flac", "speaker": "b"}', "no clean utterances with timed phones"),
    ],
)
def test_a_broken_manifest_is_one_sentence(measure, folder, tmp_path, capsys, line, message):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").write_text(line + "\n")
    assert measure.main(command(folder, tmp_path / "out.json", corpus=tmp_path)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


def test_the_output_must_be_json(measure, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        measure.main(command(folder, tmp_path / "out.png"))
    assert error.value.code == 2 and "must be the name of a .json file" in capsys.readouterr().err
