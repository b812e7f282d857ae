"""CamVid at 360x480, refine mode, at paper scale: 1,000 candidates on the cached features of 1,500 augmented clips.

The data folder comes from the environment variable DVSNAS_CAMVID, or from --config.data.dir. The labelled training
frames are a second apart, so histories are small camera motions of one frame; where the frames of the videos were
extracted, --config.data.history=frames takes true histories.

Command: dvsnas search --config=configs/camvid_search.py --workdir=runs/camvid_search
Time: not run yet; `dvsnas bench search --config=configs/camvid_search.py` measures a device and estimates it.
Score: not run yet.
"""

from dvsnas_jax.core import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.data.name = "camvid"
    config.data.height = 360
    config.data.width = 480
    config.data.num_frames = 3
    config.data.history = "stills"
    config.data.eval_gap = 2
    config.data.scale = (0.7, 1.4)
    config.data.crop_height = 321
    config.data.crop_width = 321
    config.net.width = 1.0
    config.net.decoder_channels = 256
    config.pretrain.steps = 8000
    config.pretrain.batch_size = 16
    config.pretrain.warmup_steps = 200
    config.pretrain.polyak = 0.998
    config.pretrain.eval_every = 500
    config.pretrain.checkpoint_every = 500
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
    config.search.cache_clips = 1500  # 13 MB each
    config.search.reward_clips = 32  # of the 37 held-out training frames
    config.search.num_random = 96
    config.derive.num_retrain = 3
    config.train.steps = 4000
    config.train.batch_size = 32
    config.train.warmup_steps = 100
    config.train.polyak = 0.998
    config.train.checkpoint_every = 1000
    return config
