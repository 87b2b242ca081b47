"""The entries s3prl offers under `-u`: wavcube, wavcube_pro and wavcube_layers, each also with _local, _url, _custom.

Every entry takes the arguments of s3prl's runner, `ckpt` (-k), `model_config` (-g) and `refresh` (-r), and returns an
`UpstreamExpert`. Without `-k` the plain names load the published weights from the Hugging Face hub. Nothing heavy is
imported before an entry is called. Everything else here is underscored, since s3prl lists the rest as upstreams.
"""

from wavcube_plugins.s3prl import names as _names

__all__ = _names.ENTRIES  # pyright: ignore[reportUnsupportedDunderAll]


def _entry(family, kind):
    name, what = family + kind, _names.KINDS[kind]
    default, layers = _names.FAMILIES[family]

    def entry(ckpt=None, model_config=None, refresh=False, **options):
        from wavcube_plugins.errors import InputError
        from wavcube_plugins.s3prl.expert import UpstreamExpert
        from wavcube_plugins.s3prl.sources import local_source, url_source

        if ckpt is None:
            if kind:
                raise InputError(f"-u {name} needs weights: give {what} with -k")
        elif kind == "_local":
            ckpt = local_source(ckpt)
        elif kind == "_url":
            ckpt, refresh = url_source(ckpt, refresh=refresh), False
        return UpstreamExpert(ckpt, model_config, refresh, default=default, layers=layers, **options)

    features = "every layer of WavLM" if layers else "the latent"
    published = "" if kind else f"; by default the published model {default}"
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"""WavCube with {features} as `hidden_states`.

    Args:
        ckpt: {what[0].upper()}{what[1:]} (-k){published}.
        model_config: YAML or JSON file, or a mapping, of `UpstreamOptions` (-g).
        refresh: Download a URL again (-r).
        options: Fields of `UpstreamOptions` by name.
    """
    return entry


globals().update({_family + _kind: _entry(_family, _kind) for _family in _names.FAMILIES for _kind in _names.KINDS})
