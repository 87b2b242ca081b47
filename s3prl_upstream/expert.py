"""The upstream under the name s3prl expects of a folder, for `--hub huggingface` too; see README.md."""

from pathlib import Path

from wavcube_plugins.s3prl.expert import UpstreamExpert as _UpstreamExpert


class UpstreamExpert(_UpstreamExpert):
    """WavCube with the latent as `hidden_states`.

    Args:
        ckpt: The weights (-k). For a model of the Hugging Face hub s3prl passes `model.pt` beside this file; if there
            is none, the folder's `model.safetensors` and `config.json` are used.
        model_config: YAML or JSON file of options (-g).
        refresh: Download a URL again (-r).
    """

    def __init__(self, ckpt=None, model_config=None, refresh=False, **options):
        if ckpt is not None and Path(ckpt).name == "model.pt" and not Path(ckpt).exists():
            ckpt = Path(ckpt).parent
        super().__init__(ckpt, model_config, refresh, **options)
