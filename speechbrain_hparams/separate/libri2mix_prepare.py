"""Manifests of Libri2Mix: `prepare_libri2mix(data_folder, save_folder, ...)`; see its docstring."""

from wavcube_plugins.speechbrain.corpora import prepare_libri2mix

__all__ = ["prepare_libri2mix"]
