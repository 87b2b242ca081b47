"""Manifests of VCTK: `prepare_vctk(data_folder, save_folder, ...)`; see its docstring."""

from wavcube_plugins.speechbrain.corpora import prepare_vctk

__all__ = ["prepare_vctk"]
