"""A search whose candidates are trained alone, each half as long as a cell is in the end; 48x64, for few cores.

Rewards of shared weights, or of a few steps, order cells roughly and prefer those that learn the fastest; see "Does the
search find anything?" in the README. The networks are those of the tabular benchmark, the space is the whole one.

Command: dvsnas search --config=configs/scratch.py --workdir=runs/scratch
Time: 8 minutes on 2 CPU cores, the candidates 6 of them.
Score: static network 30.1 mIoU, flicker 11.8 %; with the cell 33.8 and 9.4 % (seed 0, an Intel Xeon).
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.small_networks(config)
    presets.short_search_controller(config)
    config.data.num_frames = 3
    config.data.num_train_clips = 240
    config.pretrain.steps = 400
    config.pretrain.eval_every = 100
    config.pretrain.checkpoint_every = 200
    config.space.channels = 16
    config.controller.masked_operations = ("deform_conv_3x3",)  # on a CPU five times as dear as conv_3x3
    config.search.mode = "scratch"
    config.search.steps = 60
    config.search.genotypes_per_step = 4
    config.search.scratch_steps = 200
    config.search.scratch_polyak = 0.97
    config.search.learning_rate = 1e-2
    config.search.label_stride = 4
    config.search.meta_val_fraction = 0.25
    config.search.batch_size = 4
    config.search.reward_clips = 60
    config.search.num_random = 20
    config.train.steps = 400
    config.train.batch_size = 4
    config.train.learning_rate = 1e-2
    config.train.warmup_steps = 5
    config.train.polyak = 0.97
    config.train.label_stride = 4
    return config
