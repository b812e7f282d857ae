"""CityScapes: the retraining of a found cell (or, without --genotype, of the static network alone) on crops of 512.

The data folder comes from the environment variable DVSNAS_CITYSCAPES, or from --config.data.dir.

Command: dvsnas train --config=configs/cityscapes_train.py --genotype=runs/cityscapes_search/best_genotype.json \
  --workdir=runs/cityscapes_train
Time: not run yet.
Score: not run yet; `dvsnas evaluate` with the same --config and --workdir gives it.
"""

from dvsnas_jax.core import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.data.name = "cityscapes"
    config.data.height = 1024
    config.data.width = 2048
    config.data.num_frames = 4
    config.data.scale = (0.5, 1.4)
    config.data.crop_height = 512
    config.data.crop_width = 512
    config.data.crop_max_ratio = 0.75
    config.net.width = 1.0
    config.net.decoder_channels = 256
    config.pretrain.steps = 60000
    config.pretrain.batch_size = 64  # 16 clips of 4 frames, the last one labelled
    config.pretrain.warmup_steps = 500
    config.pretrain.polyak = 0.999
    config.pretrain.eval_every = 4000
    config.pretrain.checkpoint_every = 4000
    config.space.channels = 64
    config.space.num_layers = 7
    config.search.cache_clips = 600  # augmented draws that the cell is trained on, 45 MB each
    config.search.meta_val_fraction = 0.02
    config.train.steps = 20000
    config.train.batch_size = 16
    config.train.warmup_steps = 500
    config.train.polyak = 0.999
    config.train.norm_batches = 64
    config.train.checkpoint_every = 2000
    return config
