"""Sections that several files of `configs` share. A config calls these first and then sets what is its own."""

from __future__ import annotations

import ml_collections


def cityscapes(config: ml_collections.ConfigDict, height: int, num_frames: int) -> None:
    """CityScapes at a height, twice as wide, in clips of so many frames."""
    size = {"height": height, "width": 2 * height, "num_frames": num_frames}
    config.data.update({"name": "cityscapes", "crop_max_ratio": 0.75, **size})


def camvid(config: ml_collections.ConfigDict, height: int, num_frames: int) -> None:
    """CamVid at a height, 4:3; its labelled frames are a second apart, so histories are small motions of one frame."""
    size = {"height": height, "width": height * 4 // 3, "num_frames": num_frames}
    config.data.update({"name": "camvid", "history": "stills", "eval_gap": 2, **size})


def camvid_search(config: ml_collections.ConfigDict, *, cache_clips: int) -> None:
    """A search on CamVid that fits a CPU: `cache_clips` augmented draws of the training frames, 200 candidates."""
    learning_controller(config, buffer=20)
    config.controller.masked_operations = ("deform_conv_3x3",)  # on a CPU five times as dear as conv_3x3
    config.search.update({"cache_clips": cache_clips, "steps": 40, "genotypes_per_step": 5, "shared_steps": 5})
    config.search.update({"warmup_steps": 80, "batch_size": 4, "reward_clips": 24, "num_random": 30})
    config.train.update({"steps": 400, "batch_size": 4, "label_stride": 4})


def augmentation(config: ml_collections.ConfigDict, scale: tuple[float, float], crop: tuple[int, int]) -> None:
    """Scale jitter, and crops of (height, width)."""
    config.data.scale = scale
    config.data.crop_height, config.data.crop_width = crop


def paper_networks(config: ml_collections.ConfigDict) -> None:
    """The static network and the cell at the size of the paper-scale runs."""
    config.net.update({"width": 1.0, "decoder_channels": 256})
    config.space.update({"channels": 64, "num_layers": 7})


def paper_pretraining(
    config: ml_collections.ConfigDict, steps: int, *, every: int, warmup_steps: int, polyak: float
) -> None:
    """The static network's training: 16 clips a batch, validated and saved `every` so many steps.

    A batch is counted in frames; of a clip with a true history only the last one is labelled. Call it after the data.
    """
    batch_size = 16 * (1 if config.data.history == "stills" else config.data.num_frames)
    config.pretrain.update({"steps": steps, "batch_size": batch_size, "warmup_steps": warmup_steps, "polyak": polyak})
    config.pretrain.update({"eval_every": every, "checkpoint_every": every})


def learning_controller(config: ml_collections.ConfigDict, buffer: int) -> None:
    """A policy that learns from some hundred candidates: the published rate, 1e-4, wants tens of thousands."""
    sizes = {"buffer": buffer, "minibatch": 5, "epochs": 4}
    config.controller.update({"learning_rate": 3e-3, "normalize_advantage": True, **sizes})


def short_search_controller(config: ml_collections.ConfigDict) -> None:
    """A policy that learns from one to three hundred candidates; found by `dvsnas compare-strategies --made-up`."""
    sizes = {"buffer": 10, "minibatch": 10, "epochs": 8}
    config.controller.update({"learning_rate": 1e-2, "normalize_advantage": True, **sizes})


def paper_search(config: ml_collections.ConfigDict) -> None:
    """1,000 candidates, 8 at a time: without a rest on every number of devices that divides 8."""
    learning_controller(config, buffer=40)
    config.search.update({"steps": 125, "genotypes_per_step": 8, "shared_genotypes": 8, "shared_steps": 8})
    config.search.update({"warmup_steps": 200, "num_random": 96})


def retraining(
    config: ml_collections.ConfigDict, steps: int, *, batch_size: int, warmup_steps: int, polyak: float, every: int
) -> None:
    """The training of a cell from scratch, validated and saved `every` so many steps."""
    config.train.update({"steps": steps, "batch_size": batch_size, "warmup_steps": warmup_steps, "polyak": polyak})
    config.train.update({"eval_every": every, "checkpoint_every": every})


def small_networks(config: ml_collections.ConfigDict) -> None:
    """Frames of 48x64 and a ResNet-18 of a quarter of the width: a third of the layers of MobileNetV2 to compile."""
    config.data.update({"height": 48, "crop_height": 48, "width": 64, "crop_width": 64})
    config.net.update({"encoder": "resnet18", "width": 0.25, "decoder_channels": 32})


def small_trainings(config: ml_collections.ConfigDict) -> None:
    """The small networks on few clips, and cells trained alone in seconds: the setting of the tabular benchmark."""
    small_networks(config)
    config.data.update({"num_frames": 3, "num_train_clips": 240})
    config.pretrain.update({"steps": 400, "eval_every": 100, "checkpoint_every": 200})
    config.space.channels = 16
    config.search.update({"meta_val_fraction": 0.25, "reward_clips": 60})
    config.train.update({"steps": 400, "batch_size": 4, "learning_rate": 1e-2})
    config.train.update({"warmup_steps": 5, "polyak": 0.97, "label_stride": 4})


def lite_network(config: ml_collections.ConfigDict) -> None:
    """EfficientNet-Lite0 from ImageNet and light-weight RefineNet of 96 channels, and how they are fine-tuned."""
    config.net.update({"encoder": "efficientnet_lite0", "weights": "imagenet", "width": 1.0, "decoder_channels": 96})
    config.pretrain.update({"encoder_rate": 0.15, "class_weights": "log"})
    config.pretrain.update({"steps": 1600, "batch_size": 8, "warmup_steps": 50})
