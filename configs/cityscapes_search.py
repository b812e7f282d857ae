"""CityScapes, refine mode, at paper scale: 1,000 candidates on the cached features of 1,200 augmented clips.

The data folder comes from the environment variable DVSNAS_CITYSCAPES (leftImg8bit_sequence and gtFine), or from
--config.data.dir. One program on any number of devices that divides 8: 8 genotypes share each optimizer step, and 8
candidates are scored at a time.

Command: dvsnas search --config=configs/cityscapes_search.py --workdir=runs/cityscapes_search
Time: not run yet; `dvsnas bench search --config=configs/cityscapes_search.py` measures a device and estimates it.
Score: not run yet.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.cityscapes(config, height=512, num_frames=3)
    presets.augmentation(config, scale=(0.7, 1.4), crop=(321, 321))
    presets.paper_networks(config)
    presets.paper_pretraining(config, 30000, every=2000, warmup_steps=500, polyak=0.999)
    presets.paper_search(config)
    config.search.batch_size = 32
    config.search.cache_clips = 1200  # 13 MB each
    config.search.meta_val_fraction = 0.05  # 149 clips at full size, 66 MB each
    config.search.reward_clips = 64
    presets.retraining(config, 6000, batch_size=32, warmup_steps=200, polyak=0.998, every=1000)
    return config
