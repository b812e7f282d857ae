"""Speed: the static network on every 5th frame of the embedded clips, the first encoder stages and a cell in between.

Command: dvsnas search --config=configs/propagate.py --workdir=runs/propagate
Time: about as configs/synthetic.py.
Score: static network 35.4 mIoU, the held key frame 33.3; cells of three searches, each trained three times, 36.7 (an
  AMD EPYC; docs/results.md).
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    config.space.mode = "propagate"
    config.space.inputs = ("prev_state", "prev_decoder", "prev_logits", "stage1", "stage2", "image_diff", "prev_stage2")
    config.schedule.interval = 5
    config.schedule.threshold = 0.2  # of low_latency: 30 % key frames on held-out clips (0.1: 99 %, 0.25: 20 %)
    config.data.num_frames = 6  # from one key frame to the next: every age once, and every change from frame to frame
    presets.short_search_controller(config)
    config.controller.masked_operations = ("deform_conv_3x3",)  # on a CPU five times as dear as conv_3x3
    config.search.cost = 0.1  # otherwise the cells that it finds cost as much as the network that they replace
    config.search.cost_target = 12.0  # a quarter of the static network's 46 million
    config.search.strategy = "predictor"  # the best in docs/results.md; ppo is a word away
    config.search.steps = 60
    config.search.genotypes_per_step = 5
    config.search.shared_steps = 6
    config.search.warmup_steps = 120
    return config
