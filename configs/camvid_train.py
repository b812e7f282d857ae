"""CamVid at 360x480: the retraining of a found cell (or, without --genotype, of the static network alone).

The data folder comes from the environment variable DVSNAS_CAMVID, or from --config.data.dir.

Command: dvsnas train --config=configs/camvid_train.py --genotype=runs/camvid_search/best_genotype.json \
  --workdir=runs/camvid_train
Time: not run yet.
Score: not run yet; `dvsnas evaluate` with the same --config and --workdir gives it.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.camvid(config, height=360, num_frames=4)
    presets.augmentation(config, scale=(0.5, 2.0), crop=(360, 480))
    presets.paper_networks(config)
    presets.paper_pretraining(config, 16000, every=1000, warmup_steps=200, polyak=0.998)
    config.search.cache_clips = 800  # augmented draws that the cell is trained on, 29 MB each
    config.search.meta_val_fraction = 0.05
    presets.retraining(config, 10000, batch_size=16, warmup_steps=200, polyak=0.998, every=1000)
    config.train.norm_batches = 64
    return config
