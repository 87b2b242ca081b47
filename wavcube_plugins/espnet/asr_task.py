"""ESPnet's ASR task with the WavCube names registered, for Python users and ESPnet3."""

from __future__ import annotations

import argparse

from espnet2.tasks.asr import ASRTask

from wavcube_plugins.espnet.registration import register

register()


class WavCubeASRTask(ASRTask):
    """ESPnet's ASR task with `frontend: wavcube` as the default.

    >>> WavCubeASRTask.main(cmd=["--config", "conf/train.yaml", …])

    In ESPnet3, name it by its class path: `task: wavcube_plugins.espnet.WavCubeASRTask`.
    """

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add ESPnet's arguments and set our default."""
        super().add_task_arguments(parser)
        parser.set_defaults(frontend="wavcube")
