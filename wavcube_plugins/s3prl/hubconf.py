"""The entries s3prl offers under `-u`: wavcube, wavcube_pro and wavcube_layers, each also with _local, _url, _custom.

Every entry takes what s3prl's runner passes, `ckpt` (-k), `model_config` (-g) and `refresh` (-r), and returns an
`UpstreamExpert`. Without `-k` the plain names load the public weights from the Hugging Face hub. Nothing heavy is
imported before an entry is called, and all that is no entry is underscored: s3prl's hub takes the rest for entries.
"""

__all__ = [
    "wavcube",
    "wavcube_custom",
    "wavcube_layers",
    "wavcube_layers_custom",
    "wavcube_layers_local",
    "wavcube_layers_url",
    "wavcube_local",
    "wavcube_pro",
    "wavcube_pro_custom",
    "wavcube_pro_local",
    "wavcube_pro_url",
    "wavcube_url",
]


def _family(name, default, *, layers):
    anything = "a preset, a folder, a file, a hub name or a URL"
    return (
        _entry(name, anything, default=default, layers=layers),
        _entry(f"{name}_local", "a folder or a file", layers=layers),
        _entry(f"{name}_url", "a URL", layers=layers),
        _entry(f"{name}_custom", anything, layers=layers),
    )


def _entry(name, what, *, layers, default=None):
    def entry(ckpt=None, model_config=None, refresh=False, **options):
        from wavcube_plugins.s3prl.expert import UpstreamExpert, local_source, url_source

        if ckpt is None and default is None:
            raise ValueError(f"-u {name} needs its weights named: give {what} with -k")
        if name.endswith("_local"):
            ckpt = local_source(ckpt)
        elif name.endswith("_url"):
            ckpt, refresh = url_source(ckpt, refresh=refresh), False
        return UpstreamExpert(ckpt, model_config, refresh, default=default or "wavcube", layers=layers, **options)

    features = "every layer of WavLM" if layers else "the latent"
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"""WavCube with {features} as `hidden_states`.

    Args:
        ckpt: {what[0].upper()}{what[1:]} (-k){f"; by default the public model {default}" if default else ""}.
        model_config: YAML or JSON file, or a mapping, of `UpstreamOptions` (-g).
        refresh: Download a URL again (-r).
        options: Fields of `UpstreamOptions` by name.
    """
    return entry


wavcube, wavcube_local, wavcube_url, wavcube_custom = _family("wavcube", "wavcube", layers=False)
wavcube_pro, wavcube_pro_local, wavcube_pro_url, wavcube_pro_custom = _family(
    "wavcube_pro", "wavcube_pro", layers=False
)
wavcube_layers, wavcube_layers_local, wavcube_layers_url, wavcube_layers_custom = _family(
    "wavcube_layers", "wavcube", layers=True
)
