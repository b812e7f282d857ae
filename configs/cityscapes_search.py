"""CityScapes, refine mode, at paper scale: 1,000 candidates on the cached features of 1,200 augmented clips.

The data folder comes from the environment variable DVSNAS_CITYSCAPES (leftImg8bit_sequence and gtFine), or from
--config.data.dir. One program on any number of devices that divides 8: 8 genotypes share each optimizer step, and 8
candidates are scored at a time.

Command: dvsnas search --config=configs/cityscapes_search.py --workdir=runs/cityscapes_search
Time: not run yet; `dvsnas bench search --config=configs/cityscapes_search.py` measures a device and estimates it.
Score: not run yet.
"""

from dvsnas_jax.core import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.data.name = "cityscapes"
    config.data.height = 512
    config.data.width = 1024
    config.data.num_frames = 3
    config.data.scale = (0.7, 1.4)
    config.data.crop_height = 321
    config.data.crop_width = 321
    config.data.crop_max_ratio = 0.75
    config.net.width = 1.0
    config.net.decoder_channels = 256
    config.pretrain.steps = 30000
    config.pretrain.batch_size = 48  # 16 clips of 3 frames, the last one labelled
    config.pretrain.warmup_steps = 500
    config.pretrain.polyak = 0.999
    config.pretrain.eval_every = 2000
    config.pretrain.checkpoint_every = 2000
    config.space.channels = 64
    config.space.num_layers = 7
    config.controller.learning_rate = 3e-3  # the published 1e-4 wants tens of thousands of rollouts
    config.controller.buffer = 40
    config.controller.minibatch = 5
    config.controller.epochs = 4
    config.controller.normalize_advantage = True
    config.search.steps = 125
    config.search.genotypes_per_step = 8
    config.search.shared_genotypes = 8
    config.search.shared_steps = 8
    config.search.warmup_steps = 200
    config.search.batch_size = 32
    config.search.cache_clips = 1200  # 13 MB each
    config.search.meta_val_fraction = 0.05  # 149 clips at full size, 66 MB each
    config.search.reward_clips = 64
    config.search.num_random = 96
    config.derive.num_retrain = 3
    config.train.steps = 6000
    config.train.batch_size = 32
    config.train.warmup_steps = 200
    config.train.polyak = 0.998
    config.train.checkpoint_every = 1000
    return config
