"""CityScapes, propagate mode, at paper scale: ResNet-50 on every 5th frame, its first stage and a cell in between.

The data folder comes from the environment variable DVSNAS_CITYSCAPES (leftImg8bit_sequence and gtFine), or from
--config.data.dir. net.weights may name a folder of imported ImageNet weights (`dvsnas weights import`).

Command: dvsnas search --config=configs/cityscapes_propagate.py --workdir=runs/cityscapes_propagate
Time: not run yet; `dvsnas bench search --config=configs/cityscapes_propagate.py` measures a device and estimates it.
Score: not run yet.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.cityscapes(config, height=512, num_frames=6)  # from one key frame to the next: every age once
    presets.augmentation(config, scale=(0.7, 1.4), crop=(321, 321))
    presets.paper_networks(config)
    config.net.encoder = "resnet50"
    presets.paper_pretraining(config, 30000, every=2000, warmup_steps=500, polyak=0.999)
    config.space.mode = "propagate"
    config.space.cut = "stage1"
    config.space.inputs = ("prev_state", "prev_decoder", "prev_logits", "stage1", "image_diff")
    config.schedule.interval = 5
    presets.paper_search(config)
    config.search.cost = 0.1
    config.search.cost_target = 16000.0  # a quarter of the 63.8 thousand million of the static network
    config.search.batch_size = 16
    config.search.cache_clips = 400  # 43 MB each
    config.search.meta_val_fraction = 0.02  # 60 clips at full size, 214 MB each
    config.search.reward_clips = 48
    presets.retraining(config, 6000, batch_size=16, warmup_steps=200, polyak=0.998, every=1000)
    return config
