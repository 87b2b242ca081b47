"""Manifests of LibriSpeech: `prepare_librispeech(data_folder, save_folder, ...)`; see its docstring."""

from wavcube_plugins.speechbrain.corpora import prepare_librispeech

__all__ = ["prepare_librispeech"]
