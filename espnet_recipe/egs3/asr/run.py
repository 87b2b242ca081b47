"""Speech recognition on the frozen WavCube latent, in the convention of ESPnet3.

    . ./path.sh
    python run.py --training_config conf/training.yaml --inference_config conf/inference.yaml \\
        --metrics_config conf/metrics.yaml --stages create_dataset collect_stats train infer measure
"""

from egs3.TEMPLATE.asr.run import build_parser, main, parse_cli_and_stage_args
from espnet3.systems.base.system import BaseSystem

from wavcube_plugins.espnet import register

STAGES = ["create_dataset", "collect_stats", "train", "infer", "measure"]

if __name__ == "__main__":
    register()
    parser = build_parser(stages=STAGES)
    arguments, _ = parse_cli_and_stage_args(parser, stages=STAGES)
    main(args=arguments, system_cls=BaseSystem, stages=STAGES)
