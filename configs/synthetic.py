"""The quickstart: a search on the embedded street clips.

Command: dvsnas search --config=configs/synthetic.py --workdir=runs/quickstart
Time: 9 minutes on 2 CPU cores, the candidates 2.5 of them.
Score: static network 35.3 mIoU, flicker 14.5 %; with the cell 40.6 and 7.5 % (seed 0, an AMD EPYC);
  on an Intel Xeon 35.2 and 14.6 %, with the cell 39.7 and 6.9 %.
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
