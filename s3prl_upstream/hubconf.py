"""The WavCube entries for s3prl's `hub.py` and for `torch.hub.load`; see README.md.

The work is done by the package wavcube_plugins. Without it this module still imports, for s3prl's hub imports every
upstream at its start, and each entry says what to install.
"""

dependencies = ["torch", "torchaudio"]

__all__ = [
    f"{_family}{_kind}"
    for _family in ("wavcube", "wavcube_pro", "wavcube_layers")
    for _kind in ("", "_local", "_url", "_custom")
]


def _unavailable(name, reason):
    def entry(*args, **kwargs):
        raise ImportError(f"-u {name} needs the package wavcube_plugins: pip install wavcube-plugins ({reason})")

    entry.__name__ = entry.__qualname__ = name
    return entry


try:
    from wavcube_plugins.s3prl import hook as _hook
    from wavcube_plugins.s3prl import hubconf as _hubconf
except ImportError as _error:
    globals().update({_name: _unavailable(_name, str(_error)) for _name in __all__})
else:
    globals().update({_name: getattr(_hubconf, _name) for _name in __all__})
    _hook.allow_saved_arguments()
