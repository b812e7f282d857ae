"""CamVid at 360x480: the retraining of a found cell (or, without --genotype, of the static network alone).

The data folder comes from the environment variable DVSNAS_CAMVID, or from --config.data.dir.

Command: dvsnas train --config=configs/camvid_train.py --genotype=runs/camvid_search/best_genotype.json \
  --workdir=runs/camvid_train
Time: not run yet.
Score: not run yet; `dvsnas evaluate` with the same --config and --workdir gives it.
"""

from dvsnas_jax.core import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.data.name = "camvid"
    config.data.height = 360
    config.data.width = 480
    config.data.num_frames = 4
    config.data.history = "stills"
    config.data.eval_gap = 2
    config.data.scale = (0.5, 2.0)
    config.data.crop_height = 360
    config.data.crop_width = 480
    config.net.width = 1.0
    config.net.decoder_channels = 256
    config.pretrain.steps = 16000
    config.pretrain.batch_size = 16
    config.pretrain.warmup_steps = 200
    config.pretrain.polyak = 0.998
    config.pretrain.eval_every = 1000
    config.pretrain.checkpoint_every = 1000
    config.space.channels = 64
    config.space.num_layers = 7
    config.search.cache_clips = 800  # augmented draws that the cell is trained on, 29 MB each
    config.search.meta_val_fraction = 0.05
    config.train.steps = 10000
    config.train.batch_size = 16
    config.train.warmup_steps = 200
    config.train.polyak = 0.998
    config.train.norm_batches = 64
    config.train.checkpoint_every = 1000
    return config
