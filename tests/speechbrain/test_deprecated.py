"""Names of earlier releases, as they stand in hyperparameter files that recipes wrote."""

import importlib
import pydoc
import warnings

import pytest
from helpers.paths import GOLDEN

from wavcube_plugins.speechbrain import OnWavCube, deprecated
from wavcube_plugins.speechbrain.modules import WaveformRestorer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchaudio and SpeechBrain about each other's age
    from hyperpyyaml import load_hyperpyyaml

SOURCE = GOLDEN / "official_stage2.ckpt"
PACKAGE = "wavcube_plugins.speechbrain"
# Every class and function that files written by the recipes named, or that the recipes' own files of settings did.
WRITTEN = [
    "heads.OnWavCube", "heads.Recurrent", "heads.Pooled", "heads.Classifier", "heads.Understanding", "heads.Unchanged",
    "restoration.LatentMapper", "restoration.WaveformRestorer", "conversion.VoiceConverter",
    "conversion.WaveformConverter", "slots.read_tags", "weighted_sum.WeightedSum",
]  # fmt: skip

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the weights of:UserWarning", "ignore:torchaudio._backend:UserWarning"),
]


@pytest.mark.parametrize("name", WRITTEN)
def test_old_names_resolve_with_a_warning(name):
    module, _, attribute = name.partition(".")
    with pytest.warns(DeprecationWarning, match=rf"^{PACKAGE}.{name} is now wavcube_plugins\..*\.{attribute}; "):
        found = pydoc.locate(f"{PACKAGE}.{name}")  # as HyperPyYAML does it
    assert found.__name__ == attribute
    with pytest.warns(DeprecationWarning):
        assert getattr(importlib.import_module(f"{PACKAGE}.{module}"), attribute) is found


def test_every_name_of_the_table_exists():
    for old, places in deprecated._MOVED.items():
        for name, place in places.items():
            assert getattr(importlib.import_module(place), name).__module__ == place, (old, name)


def test_functions_that_read_corpora_keep_their_names():
    for corpus in ("librispeech", "voxceleb", "iemocap", "slurp", "voicebank", "libri2mix", "vctk", "speech", "mini"):
        assert callable(pydoc.locate(f"{PACKAGE}.corpora.prepare_{corpus}"))


def test_unknown_names_are_errors():
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        importlib.import_module(f"{PACKAGE}.heads").Nonsense  # noqa: B018
    with pytest.raises(ImportError, match="There is no such class"):
        load_hyperpyyaml(f"x: !new:{PACKAGE}.heads.Nonsense\n")


def test_a_file_that_an_earlier_release_wrote_loads():
    text = f"""
wavcube: !new:wavcube_plugins.speechbrain.WavCube
    source: {SOURCE}
    features: latent
    output_all_hiddens: false
    output_norm: false
    decoder: true
    freeze: true
head: !new:wavcube_plugins.speechbrain.restoration.LatentMapper
    in_dim: 16
    out_dim: 1
    dim: 16
    layers: 1
    heads: 2
model: !new:wavcube_plugins.speechbrain.OnWavCube
    wavcube: !ref <wavcube>
    head: !ref <head>
output: masks
enhance_model: !new:wavcube_plugins.speechbrain.restoration.WaveformRestorer
    model: !ref <model>
    output: !ref <output>
"""
    with pytest.warns(DeprecationWarning, match=r"restoration\.LatentMapper is now"):
        loaded = load_hyperpyyaml(text)
    assert isinstance(loaded["enhance_model"], WaveformRestorer) and isinstance(loaded["model"], OnWavCube)
