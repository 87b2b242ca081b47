"""Model files, whole and damaged: the model that was saved, another one of the same shapes, or one sentence."""

import json
import shutil

import pytest
import torch
from helpers.fuzz import check_message, damage, guard, json_values
from helpers.paths import GOLDEN
from hypothesis import event, given
from hypothesis import strategies as st

from wavcube_plugins import load_model
from wavcube_plugins.checkpoints import save_model
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*UNTRAINED")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A native folder, whole."""
    folder = tmp_path_factory.mktemp("saved")
    save_model(load_model("tiny"), folder)
    return folder


@pytest.fixture(scope="module")
def copied(saved, folder):
    """A copy of it that cases may damage; each writes both files anew."""
    copy = folder / "model"
    shutil.copytree(saved, copy)
    return copy


def load(path, *parts):
    """Return the model, or None if it was refused in one sentence that names the file or one in the folder."""
    try:
        with guard():
            model = load_model(path)
    except InputError as error:
        check_message(error, path)
        event("refused")
        return None
    event("read")
    return model


def use(model):
    """A model that loads can be used: it gives an output, or says that there is none to give."""
    with guard(), torch.inference_mode():
        try:
            latent, lengths = model.encode(torch.zeros(1, 800))
        except InputError:
            return
    assert latent.shape == (1, int(lengths[0]), model.latent_dim)


@given(change=damage())
def test_damaged_weights(saved, copied, change):
    whole = (saved / "model.safetensors").read_bytes()
    (copied / "config.json").write_bytes((saved / "config.json").read_bytes())
    damaged = change(whole)
    (copied / "model.safetensors").write_bytes(damaged)
    model = load(copied)
    if model is None:
        assert damaged != whole
        return
    wanted = load_model(saved).state_dict()
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in wanted.items()
    }
    if change.changes[0][0] in ("cut", "append", "insert") and len(change.changes) == 1:
        assert damaged == whole  # nothing that lacks or adds bytes is taken for the model


@given(change=damage())
def test_damaged_configurations(saved, copied, change):
    (copied / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    (copied / "config.json").write_bytes(change((saved / "config.json").read_bytes()))
    model = load(copied)
    if model is not None:
        use(model)


def test_a_number_of_layers_without_end(saved, copied):
    description = json.loads((saved / "config.json").read_text())
    for part, name in (("wavlm", "num_layers"), ("decoder", "num_layers"), ("decoder", "vocoder_layers")):
        other = json.loads(json.dumps(description))
        other["config"][part][name] = 10**9
        (copied / "config.json").write_text(json.dumps(other))
        with pytest.raises(InputError, match=f"{name} must be at most 1000"), guard():
            load_model(copied)


def test_a_small_file_that_claims_to_be_large(folder):
    path = folder / "claims.ckpt"
    path.write_bytes(b"X\x00\x00\x00\x7f")  # a text of two gigabytes in a pickle
    with pytest.raises(InputError, match=r"claims\.ckpt: .* foreign file of 5 bytes"), guard():
        load_model(path)


def _places(value, path=()):
    """Yield the keys that lead to each value in a nested dictionary."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from _places(inner, (*path, key))


@given(data=st.data())
def test_other_values_in_configurations(saved, copied, data):
    (copied / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    description = json.loads((saved / "config.json").read_text())
    places = list(_places(description))
    odd = st.one_of(json_values, st.sampled_from((0, -1, 1, 2, 3, 10**9, 2**63, 0.5, "1", [], {}, True)))
    for _ in range(data.draw(st.integers(1, 2), "changes")):
        place = data.draw(st.sampled_from(places), "place")
        inner = description
        for key in place[:-1]:
            inner = inner[key] if isinstance(inner, dict) and key in inner else {}
        if isinstance(inner, dict):
            inner[place[-1]] = data.draw(odd, "value")
    (copied / "config.json").write_text(json.dumps(description))
    model = load(copied)
    if model is not None:
        use(model)


@given(value=st.one_of(json_values, st.dictionaries(st.sampled_from(("format", "config", "metadata")), json_values)))
def test_configurations_of_any_kind(saved, copied, value):
    (copied / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    (copied / "config.json").write_text(json.dumps(value))
    load(copied)


@given(data=st.data())
def test_sizes_of_any_kind(data):
    """Sizes are those of a model that can be built, or refused where they are declared."""
    sizes = WavCubeConfig.preset("tiny").to_dict()
    place = data.draw(st.sampled_from(list(_places(sizes))), "place")
    value = data.draw(st.one_of(json_values, st.integers(-2, 600), st.floats(-1, 2)), "value")
    inner = sizes
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        with guard():
            WavCubeConfig.from_dict(sizes)
    except ValueError as error:
        assert "\n" not in str(error)


@given(stage=st.sampled_from((1, 2)), change=damage())
def test_damaged_lightning_files(folder, stage, change):
    whole = (GOLDEN / f"official_stage{stage}.ckpt").read_bytes()
    path = folder / "damaged.ckpt"
    damaged = change(whole)
    path.write_bytes(damaged)
    model = load(path)
    if model is None:
        assert damaged != whole


@given(data=st.binary(max_size=300), suffix=st.sampled_from((".ckpt", ".pt", ".bin", ".safetensors", ".txt", "")))
def test_arbitrary_bytes(folder, data, suffix):
    path = folder / f"bytes{suffix}"
    path.write_bytes(data)
    assert load(path) is None
