"""The tabular benchmark: a sub-space of 1,371 distinct cells, small enough to train every one of them alone.

Every frame passes the static network (mode refine), and trainings are long enough for cells to differ: in mode
propagate with 100 steps the best cells all held on to the logits of the key frame, equal within the noise.

Command: dvsnas compare-strategies --config=configs/table.py --make-table --seeds=2 --workdir=runs/table
Time: see the head of the table.
Score: see the README.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.small_networks(config)
    config.data.num_frames = 3
    config.data.num_train_clips = 240
    config.pretrain.steps = 400
    config.pretrain.eval_every = 100
    config.pretrain.checkpoint_every = 200
    config.space.mode = "refine"
    config.space.inputs = ("prev_state", "decoder", "logits", "stage1", "stage2")
    config.space.num_layers = 1
    config.space.operations = (
        "none",
        "skip",
        "conv_3x3",
        "sep_conv_5x5",
        "sep_conv_3x3_dil3",
        "global_average_pool",
    )
    config.space.aggregations = ("sum", "gate", "local_attention")
    config.space.channels = 16
    config.search.meta_val_fraction = 0.25
    config.search.batch_size = 20
    config.search.reward_clips = 60
    config.train.steps = 400
    config.train.batch_size = 4
    config.train.learning_rate = 1e-2
    config.train.warmup_steps = 5
    config.train.polyak = 0.97
    config.train.label_stride = 4
    return config
