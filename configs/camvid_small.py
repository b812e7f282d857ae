"""The real CamVid (SegNet layout) at 180x240, on CPU.

The labelled training frames are a second apart, so the training clips are small camera motions of one frame ("stills");
validation runs on the dense 15 Hz clip 0016E5.

Command: dvsnas search --config=configs/camvid_small.py --config.data.dir=CAMVID --workdir=runs/camvid_small
  (or the environment variable DVSNAS_CAMVID instead of --config.data.dir)
Time: 35 minutes on 2 CPU cores.
Score: static network 52.4 mIoU on the 15 Hz validation clip; the cell 51.1: it does not beat it
  here (see docs/results.md).
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    config.data.name = "camvid"
    config.data.height = 180
    config.data.width = 240
    config.data.crop_height = 160
    config.data.crop_width = 208
    config.data.num_frames = 3
    config.data.history = "stills"
    config.data.eval_gap = 2
    config.pretrain.steps = 1600
    config.pretrain.batch_size = 8
    config.pretrain.warmup_steps = 100
    config.pretrain.polyak = 0.99
    config.pretrain.eval_every = 250
    config.pretrain.checkpoint_every = 250
    presets.camvid_search(config, cache_clips=600)
    return config
