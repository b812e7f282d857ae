"""A search whose candidates are trained alone, each half as long as a cell is in the end; 48x64, for few cores.

Rewards of shared weights, or of a few steps, order cells roughly and prefer those that learn the fastest, see
docs/results.md. The networks are those of the tabular benchmark, the space is the whole one.

Command: dvsnas search --config=configs/scratch.py --workdir=runs/scratch
Time: 8 minutes on 2 CPU cores, the candidates 6 of them.
Score: static network 30.1 mIoU, flicker 11.8 %; with the cell 33.8 and 9.4 % (seed 0, an Intel Xeon).
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.small_trainings(config)
    presets.short_search_controller(config)
    config.controller.masked_operations = ("deform_conv_3x3",)  # on a CPU five times as dear as conv_3x3
    config.search.mode = "scratch"
    config.search.steps = 60
    config.search.genotypes_per_step = 4
    config.search.scratch_steps = 200
    config.search.scratch_polyak = 0.97
    config.search.learning_rate = 1e-2
    config.search.label_stride = 4
    config.search.batch_size = 4
    config.search.num_random = 20
    return config
