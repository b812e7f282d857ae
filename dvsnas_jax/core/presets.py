"""Sections that several files of `configs` share. A config calls these first and then sets what is its own."""

from __future__ import annotations

import ml_collections


def cityscapes(config: ml_collections.ConfigDict, height: int, num_frames: int) -> None:
    """CityScapes at a height, twice as wide, in clips of so many frames."""
    config.data.name = "cityscapes"
    config.data.height = height
    config.data.width = 2 * height
    config.data.num_frames = num_frames
    config.data.crop_max_ratio = 0.75


def camvid(config: ml_collections.ConfigDict, height: int, num_frames: int) -> None:
    """CamVid at a height, 4:3; its labelled frames are a second apart, so histories are small motions of one frame."""
    config.data.name = "camvid"
    config.data.height = height
    config.data.width = height * 4 // 3
    config.data.num_frames = num_frames
    config.data.history = "stills"
    config.data.eval_gap = 2


def augmentation(config: ml_collections.ConfigDict, scale: tuple[float, float], crop: tuple[int, int]) -> None:
    """Scale jitter, and crops of (height, width)."""
    config.data.scale = scale
    config.data.crop_height, config.data.crop_width = crop


def paper_networks(config: ml_collections.ConfigDict) -> None:
    """The static network and the cell at the size of the paper-scale runs."""
    config.net.width = 1.0
    config.net.decoder_channels = 256
    config.space.channels = 64
    config.space.num_layers = 7


def paper_pretraining(
    config: ml_collections.ConfigDict, steps: int, *, every: int, warmup_steps: int, polyak: float
) -> None:
    """The static network's training: 16 clips a batch, validated and saved `every` so many steps.

    A batch is counted in frames; of a clip with a true history only the last one is labelled. Call it after the data.
    """
    config.pretrain.steps = steps
    config.pretrain.batch_size = 16 * (1 if config.data.history == "stills" else config.data.num_frames)
    config.pretrain.warmup_steps = warmup_steps
    config.pretrain.polyak = polyak
    config.pretrain.eval_every = config.pretrain.checkpoint_every = every


def learning_controller(config: ml_collections.ConfigDict, buffer: int) -> None:
    """A policy that learns from some hundred candidates: the published rate, 1e-4, wants tens of thousands."""
    config.controller.learning_rate = 3e-3
    config.controller.buffer = buffer
    config.controller.minibatch = 5
    config.controller.epochs = 4
    config.controller.normalize_advantage = True


def short_search_controller(config: ml_collections.ConfigDict) -> None:
    """A policy that learns from one to three hundred candidates; found by `dvsnas compare-strategies --made-up`."""
    config.controller.learning_rate = 1e-2
    config.controller.buffer = 10
    config.controller.minibatch = 10
    config.controller.epochs = 8
    config.controller.normalize_advantage = True


def paper_search(config: ml_collections.ConfigDict) -> None:
    """1,000 candidates, 8 at a time: without a rest on every number of devices that divides 8."""
    learning_controller(config, buffer=40)
    config.search.steps = 125
    config.search.genotypes_per_step = 8
    config.search.shared_genotypes = 8
    config.search.shared_steps = 8
    config.search.warmup_steps = 200
    config.search.num_random = 96
    config.derive.num_retrain = 3


def retraining(
    config: ml_collections.ConfigDict, steps: int, *, batch_size: int, warmup_steps: int, polyak: float, every: int
) -> None:
    """The training of a cell from scratch, saved `every` so many steps."""
    config.train.steps = steps
    config.train.batch_size = batch_size
    config.train.warmup_steps = warmup_steps
    config.train.polyak = polyak
    config.train.checkpoint_every = every


def small_networks(config: ml_collections.ConfigDict) -> None:
    """Frames of 48x64 and a ResNet-18 of a quarter of the width: a third of the layers of MobileNetV2 to compile."""
    config.data.height = config.data.crop_height = 48
    config.data.width = config.data.crop_width = 64
    config.net.encoder = "resnet18"
    config.net.width = 0.25
    config.net.decoder_channels = 32


def small_trainings(config: ml_collections.ConfigDict) -> None:
    """The small networks on few clips, and cells trained alone in seconds: the setting of the tabular benchmark."""
    small_networks(config)
    config.data.num_frames = 3
    config.data.num_train_clips = 240
    config.pretrain.steps = 400
    config.pretrain.eval_every = 100
    config.pretrain.checkpoint_every = 200
    config.space.channels = 16
    config.search.meta_val_fraction = 0.25
    config.search.reward_clips = 60
    config.train.steps = 400
    config.train.batch_size = 4
    config.train.learning_rate = 1e-2
    config.train.warmup_steps = 5
    config.train.polyak = 0.97
    config.train.label_stride = 4
