"""Manifests of a folder of speech: `prepare_speech(data_folder, save_folder, ...)`; see its docstring."""

from wavcube_plugins.speechbrain.corpora import prepare_speech

__all__ = ["prepare_speech"]
