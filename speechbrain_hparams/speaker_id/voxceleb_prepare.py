"""Manifests of VoxCeleb1: `prepare_voxceleb(data_folder, save_folder, ...)`; see its docstring."""

from wavcube_plugins.speechbrain.corpora import prepare_voxceleb

__all__ = ["prepare_voxceleb"]
