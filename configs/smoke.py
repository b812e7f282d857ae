"""The shortest run that passes every stage: to see that an installation works.

Command: dvsnas search --config=configs/smoke.py --workdir=runs/smoke
Time: 48 seconds on 2 CPU cores from an empty compile cache.
Score: none to expect, the networks are barely trained.
"""

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    config.compile_effort = "quick"
    presets.small_networks(config)
    config.data.num_frames = 2
    config.data.num_train_clips = 24
    config.data.num_val_clips = 2
    config.data.val_frames = 10
    config.pretrain.steps = 20
    config.pretrain.batch_size = 4
    config.pretrain.warmup_steps = 5
    config.pretrain.eval_every = 10
    config.pretrain.checkpoint_every = 10
    config.space.inputs = ("prev_state", "prev_decoder", "decoder", "logits")
    config.space.num_layers = 2
    config.space.operations = ("none", "skip", "conv_1x1", "sep_conv_3x3")
    config.space.aggregations = ("sum", "gate")
    config.space.channels = 8
    config.controller.buffer = 8
    config.search.steps = 4
    config.search.genotypes_per_step = 2
    config.search.shared_steps = 2
    config.search.warmup_steps = 4
    config.search.batch_size = 4
    config.search.meta_val_fraction = 0.25
    config.search.reward_clips = 4
    config.search.num_random = 4
    config.search.checkpoint_every = 2
    config.derive.num_rewarded = 2
    config.derive.num_probable = 1
    config.derive.num_retrain = 1  # each more is a program to compile
    config.train.steps = 20
    config.train.batch_size = 4
    config.train.warmup_steps = 5
    config.train.norm_batches = 2
    config.train.checkpoint_every = 10
    config.evaluate.latency_frames = 0
    return config
