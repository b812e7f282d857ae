"""The quickstart: a search on the embedded street clips.

Command: dvsnas search --config=configs/synthetic.py --workdir=runs/quickstart
Time: about 13 minutes on 2 CPU cores, added up from its stages, the candidates 2.5 of them. Five drawn cells and a
  hand-designed one beside the found one, in the report's section why, take about 9 more:
  --config.why.num_random=5 --config.why.hand_designed=zoo:grfp
Score: static network 35.4 mIoU, flicker 14.2 %; with the cell 42.2 and 5.4 %; the running average of the network's
  output, without training, 36.5 and 6.6 % (seed 0, an Intel Xeon).
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.learning_controller(config, buffer=20)
    config.controller.masked_operations = ("deform_conv_3x3",)  # on a CPU five times as dear as conv_3x3
    config.search.steps = 60
    config.search.genotypes_per_step = 5
    config.search.shared_steps = 6
    config.search.warmup_steps = 120
    return config
