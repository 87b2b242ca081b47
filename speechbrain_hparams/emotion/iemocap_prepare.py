"""Manifests of IEMOCAP: `prepare_iemocap(data_folder, save_folder, ...)`; see its docstring."""

from wavcube_plugins.speechbrain.corpora import prepare_iemocap

__all__ = ["prepare_iemocap"]
