"""The quickstart: a search on the embedded street clips.

Command: dvsnas search --config=configs/synthetic.py --workdir=runs/quickstart
Time: at most 8 minutes on 2 CPU cores.
Score: the retrained cell at least 2.0 mIoU points above the static network, its flicker at most 0.8 of it.
"""

from dvsnas_jax.core import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.controller.learning_rate = 3e-3  # the published 1e-4 wants tens of thousands of rollouts
    config.controller.buffer = 20
    config.controller.minibatch = 5
    config.controller.epochs = 4
    config.controller.normalize_advantage = True
    config.search.steps = 60
    config.search.genotypes_per_step = 5
    config.search.shared_steps = 6
    config.search.warmup_steps = 120
    return config
