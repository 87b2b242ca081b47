"""Manifests of Voicebank-DEMAND: `prepare_voicebank(data_folder, save_folder, ...)`; see its docstring."""

from wavcube_plugins.speechbrain.corpora import prepare_voicebank

__all__ = ["prepare_voicebank"]
