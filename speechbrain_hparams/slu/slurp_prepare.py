"""Manifests of SLURP: `prepare_slurp(data_folder, save_folder, ...)`; see its docstring."""

from wavcube_plugins.speechbrain.corpora import prepare_slurp

__all__ = ["prepare_slurp"]
