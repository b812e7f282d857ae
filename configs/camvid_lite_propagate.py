"""Speed on the real CamVid (SegNet layout) at 240x320: the network of configs/camvid_lite.py on every 5th frame.

Training clips are stills, a camera that drives through one frame at a speed that each clip draws; on the frames between
key frames a cell learns from the labels, which move along, and from the static network's own output there.

Command: dvsnas search --config=configs/camvid_lite_propagate.py --config.data.dir=CAMVID --workdir=runs/camvid_lite_p
  (or the environment variable DVSNAS_CAMVID instead of --config.data.dir)
Time: on 2 CPU cores the static network 40 minutes, 44 candidates at most 20, the choice among the best 35; a cell by
  itself 11.
Score: on the 15 Hz clip 0016E5 static network 67.6 mIoU, the key frame's output held 59.1, zoo:clockwork 63.1, a
  searched cell 66.3 (three trainings), which takes 0.48 of the network's time.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.camvid(config, height=240, num_frames=6)  # from one key frame to the next
    presets.augmentation(config, scale=(0.7, 1.8), crop=(240, 320))
    config.data.still_objects = 0.5  # cars and people that move by themselves
    presets.lite_network(config)
    config.space.mode = "propagate"
    config.space.inputs = ("prev_state", "prev_decoder", "prev_logits", "stage1", "stage2", "image_diff", "prev_stage2")
    # Cells of 24 channels, or of 32 and a window of 7, take up to a sixth more time; 16 are as accurate after twice the
    # steps that those were trained for.
    config.space.update({"channels": 16, "correlation_window": 5})
    config.schedule.interval = 5
    presets.camvid_search(config, cache_clips=360)
    # Candidates are trained alone, and the hand-designed cells are the first: weights that all share rank too roughly.
    # None is stopped early: cells that match need 80 steps to pass those that do not, after 20 they are behind.
    config.search.update({"strategy": "predictor", "first": ("zoo",), "mode": "scratch"})
    config.search.update({"scratch_steps": 80, "scratch_parts": 1, "steps": 10, "genotypes_per_step": 4})
    config.search.num_random = 4
    config.controller.predictor_draws = 6
    config.search.cost = 0.1
    config.search.cost_target = 330.0  # of the static network's 955 million: a propagated frame at 0.35 of it
    config.train.update({"steps": 1600, "eval_every": 400})
    config.train.teacher_weight = 2.0
    config.train.teacher_frames = "all"
    return config
