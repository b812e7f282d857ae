"""CityScapes, propagate mode, at paper scale: ResNet-50 on every 5th frame, its first stage and a cell in between.

The data folder comes from the environment variable DVSNAS_CITYSCAPES (leftImg8bit_sequence and gtFine), or from
--config.data.dir. net.weights may name a folder of imported ImageNet weights (`dvsnas weights import`).

Command: dvsnas search --config=configs/cityscapes_propagate.py --workdir=runs/cityscapes_propagate
Time: not run yet; `dvsnas bench search --config=configs/cityscapes_propagate.py` measures a device and estimates it.
Score: not run yet.
"""

from dvsnas_jax.core import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.data.name = "cityscapes"
    config.data.height = 512
    config.data.width = 1024
    config.data.num_frames = 5  # the longest stretch: a key frame and the four that follow
    config.data.scale = (0.7, 1.4)
    config.data.crop_height = 321
    config.data.crop_width = 321
    config.data.crop_max_ratio = 0.75
    config.net.encoder = "resnet50"
    config.net.width = 1.0
    config.net.decoder_channels = 256
    config.pretrain.steps = 30000
    config.pretrain.batch_size = 80  # 16 clips of 5 frames, the last one labelled
    config.pretrain.warmup_steps = 500
    config.pretrain.polyak = 0.999
    config.pretrain.eval_every = 2000
    config.pretrain.checkpoint_every = 2000
    config.space.mode = "propagate"
    config.space.cut = "stage1"
    config.space.inputs = ("prev_state", "prev_decoder", "prev_logits", "stage1", "image_diff")
    config.space.channels = 64
    config.space.num_layers = 7
    config.schedule.interval = 5
    config.controller.learning_rate = 3e-3  # the published 1e-4 wants tens of thousands of rollouts
    config.controller.buffer = 40
    config.controller.minibatch = 5
    config.controller.epochs = 4
    config.controller.normalize_advantage = True
    config.search.cost = 0.1
    config.search.cost_target = 16000.0  # a quarter of the 63.8 thousand million of the static network
    config.search.steps = 125
    config.search.genotypes_per_step = 8
    config.search.shared_genotypes = 8
    config.search.shared_steps = 8
    config.search.warmup_steps = 200
    config.search.batch_size = 16
    config.search.cache_clips = 400  # 36 MB each
    config.search.meta_val_fraction = 0.02  # 60 clips at full size, 178 MB each
    config.search.reward_clips = 48
    config.search.num_random = 96
    config.derive.num_retrain = 3
    config.train.steps = 6000
    config.train.batch_size = 16
    config.train.warmup_steps = 200
    config.train.polyak = 0.998
    config.train.checkpoint_every = 1000
    return config
