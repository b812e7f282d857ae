"""CityScapes: the retraining of a found cell (or, without --genotype, of the static network alone) on crops of 512.

The data folder comes from the environment variable DVSNAS_CITYSCAPES, or from --config.data.dir.

Command: dvsnas train --config=configs/cityscapes_train.py --genotype=runs/cityscapes_search/best_genotype.json \
  --workdir=runs/cityscapes_train
Time: not run yet.
Score: not run yet; `dvsnas evaluate` with the same --config and --workdir gives it.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.cityscapes(config, height=1024, num_frames=4)
    presets.augmentation(config, scale=(0.5, 1.4), crop=(512, 512))
    presets.paper_networks(config)
    presets.paper_pretraining(config, 60000, every=4000, warmup_steps=500, polyak=0.999)
    config.search.cache_clips = 600  # augmented draws that the cell is trained on, 45 MB each
    config.search.meta_val_fraction = 0.02
    presets.retraining(config, 20000, batch_size=16, warmup_steps=500, polyak=0.999, every=2000)
    config.train.norm_batches = 64
    return config
