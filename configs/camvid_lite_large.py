"""As `configs/camvid_lite.py`, at 360x480, the size of SegNet's files.

Command: dvsnas search --config=configs/camvid_lite_large.py --config.data.dir=CAMVID --workdir=runs/camvid_lite_large
  (or the environment variable DVSNAS_CAMVID instead of --config.data.dir); `dvsnas train` trains the static network
  alone
Time: not run yet; a step of the static network has 2.25 times the pixels of one at 240x320.
Score: not run yet.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.camvid(config, height=360, num_frames=3)
    presets.augmentation(config, scale=(0.7, 1.8), crop=(360, 480))
    presets.lite_network(config)
    presets.camvid_search(config, cache_clips=300)  # 23 MB each in float32
    return config
