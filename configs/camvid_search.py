"""CamVid at 360x480, refine mode, at paper scale: 1,000 candidates on the cached features of 1,500 augmented clips.

The data folder comes from the environment variable DVSNAS_CAMVID, or from --config.data.dir. The labelled training
frames are a second apart, so histories are small camera motions of one frame; where the frames of the videos were
extracted, --config.data.history=frames takes true histories.

Command: dvsnas search --config=configs/camvid_search.py --workdir=runs/camvid_search
Time: not run yet; `dvsnas bench search --config=configs/camvid_search.py` measures a device and estimates it.
Score: not run yet.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.camvid(config, height=360, num_frames=3)
    presets.augmentation(config, scale=(0.7, 1.4), crop=(321, 321))
    presets.paper_networks(config)
    presets.paper_pretraining(config, 8000, every=500, warmup_steps=200, polyak=0.998)
    presets.paper_search(config)
    config.search.batch_size = 32
    config.search.cache_clips = 1500  # 13 MB each
    config.search.reward_clips = 32  # of the 37 held-out training frames
    presets.retraining(config, 4000, batch_size=32, warmup_steps=100, polyak=0.998, every=1000)
    return config
