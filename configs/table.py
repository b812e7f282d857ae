"""The tabular benchmark: a sub-space of 1,371 distinct cells, small enough to train every one of them alone.

Every frame passes the static network (mode refine), and trainings are long enough for cells to differ: in mode
propagate with 100 steps the best cells all held on to the logits of the key frame, equal within the noise.

Command: dvsnas compare-strategies --config=configs/table.py --make-table --seeds=2 --best-seeds=4 --workdir=runs/table
Time: see the head of the table.
Score: see docs/results.md.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.small_trainings(config)
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
    config.search.batch_size = 20
    return config
