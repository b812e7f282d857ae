"""The real CamVid (SegNet layout) at 180x240, on CPU.

The labelled training frames are a second apart, so the training clips are small camera motions of one frame ("stills");
validation runs on the dense 15 Hz clip 0016E5.

Command: dvsnas search --config=configs/camvid_small.py --config.data.dir=CAMVID --workdir=runs/camvid_small
  (or the environment variable DVSNAS_CAMVID instead of --config.data.dir)
Time: at most 45 minutes on 2 CPU cores.
Score: see the README.
"""

from dvsnas_jax.core import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.data.name = "camvid"
    config.data.height = 180
    config.data.width = 240
    config.data.crop_height = 160
    config.data.crop_width = 208
    config.data.history = "stills"
    config.data.eval_gap = 2
    config.pretrain.steps = 1500
    config.pretrain.batch_size = 8
    config.train.steps = 600
    config.train.batch_size = 4
    return config
