"""The WavCube entries for s3prl's `hub.py` and for `torch.hub.load`; see README.md.

The package wavcube_plugins does the work. Without it this module can still be imported, because s3prl's hub imports
every upstream at its start; each entry then says what to install.
"""

dependencies = ["torch", "torchaudio"]

__all__ = [
    f"{_family}{_kind}"
    for _family in ("wavcube", "wavcube_pro", "wavcube_layers")
    for _kind in ("", "_local", "_url", "_custom")
]


def _unavailable(name, reason):
    def entry(*args, **kwargs):
        raise ImportError(
            f"-u {name} needs the package wavcube_plugins, from a clone of it: pip install '.[s3prl]' ({reason})"
        )

    entry.__name__ = entry.__qualname__ = name
    return entry


try:
    from wavcube_plugins.s3prl import hook as _hook
    from wavcube_plugins.s3prl import hubconf as _hubconf
except ImportError as _error:
    globals().update({_name: _unavailable(_name, str(_error)) for _name in __all__})
else:
    globals().update({_name: getattr(_hubconf, _name) for _name in __all__})
    _hook.allow_saved_arguments_in_runner()
