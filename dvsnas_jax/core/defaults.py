"""Every configuration key with its default, and beside it the values that are allowed where they can be listed.

Sizes are in pixels, rates per step, `*_steps` in optimizer steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections


class OneOf(NamedTuple):
    """A default whose key takes only some values: these, or the members of a table or tuple named "module:NAME"."""

    default: Any
    allowed: tuple[Any, ...] | str


_FOLDER = {
    "frames": "",  # pattern below data.dir: {split}/{sequence}/{number}.png; empty = guessed
    "masks": "",  # pattern of the label images, with the same fields; empty = none
    # Where the pattern has no {split}: shares of the videos (0.8,0.2 or 0.8,0.1,0.1), or files that list
    # videos or frames (ImageSets/2017/{split}.txt), or videos by name (val:NAME,test:NIGHT*; the rest is
    # train); empty = the files train.txt, val.txt, test.txt in data.dir, without them all frames are train.
    "splits": (),
    "split_by": OneOf("videos", ("videos", "blocks")),  # of shares: whole videos | contiguous pieces of each video
    "labels": OneOf("ids", ("ids", "colors")),  # what the pixels of a mask hold; ids are also palette indices
    "classes": (),  # names of the classes, or camvid, or cityscapes; needed where there are masks
    "colors": (),  # a colour a class, #rrggbb, or several: #rrggbb+#rrggbb; empty = made up
    "ids": (),  # the id of each class in the masks, several as 1+2; empty = 0, 1, 2, ...
    "ignore": ("255",),  # ids, or colours #rrggbb, that are ignored; 255 is not where it is the id of a class
    "absent": (),  # classes that may have no pixel in any mask, or all
    "frame_rate": 30.0,  # frames per second where frame numbers are consecutive
}

_DATA = {
    "name": OneOf("synthetic", "dvsnas_jax.data.datasets:TABLE"),
    "dir": "",  # dataset folder; empty = environment variable DVSNAS_CAMVID or DVSNAS_CITYSCAPES
    "prepared": "",  # folder of `dvsnas data prepare`, used instead of data.dir; empty = none
    "ignore": (),  # ids, or colours #rrggbb, in label images that are ignored beside those of the data set
    "folder": _FOLDER,  # what a folder of frames holds, where data.name is folder
    # auto: numpy for arrays in memory (synthetic), else tf
    "loader": OneOf("auto", "dvsnas_jax.data.loading.pipeline:LOADERS"),
    "workers": 0,  # clips that loader tf makes at the same time, 0 = one a core; the clips do not depend on it
    "height": 96,  # frames are resized to height x width (labels: nearest)
    "width": 128,
    "num_frames": 4,  # T
    # Further data that training clips are drawn from as well, KIND:PATH:SHARE of the clips. KIND: a data set on disk
    # (cityscapes:/data/cs:0.3, folder:/data/frames:0.2), video (of a file, what `dvsnas segment` takes), or config (a
    # config file whose section data describes it). Classes are matched by name; no masks: the teacher's alone.
    "extra": (),
    # frames: earlier frames of the video; stills: camera motions of one frame
    "history": OneOf("frames", "dvsnas_jax.data.loading.store:HISTORIES"),
    # stills, drive: forward, at a speed that is drawn for a clip, from none to fast; shake: any way, always
    "still_motion": OneOf("drive", "dvsnas_jax.data.loading.augment:MOTIONS"),
    # stills: which frames get noise and another exposure, by data.jitter; clip: all of a training clip alike
    "still_noise": OneOf("none", "dvsnas_jax.data.loading.augment:NOISES"),
    # stills: share of the training clips in which one object (a car, a person) moves by itself, 0 = none
    "still_objects": 0.0,
    "frame_gap": 1,  # training clips: distance in frame numbers between consecutive frames of a clip
    "frame_gap_tolerance": 0,  # how far a real distance may be from frame_gap
    "gap_jitter": 0,  # training clips: each distance is drawn anew from frame_gap +- this, among what exists
    "eval_gap": 1,  # distance for evaluation sequences
    "seed": 0,  # of the synthetic world
    "num_train_clips": 384,  # synthetic: clips of the train split
    "num_val_clips": 12,  # synthetic: sequences of val and of test
    "val_frames": 24,  # synthetic: frames of one val/test sequence
    "degrade": 1.0,  # synthetic: strength of the per-frame degradations, 0 = none
    "flip": True,  # augmentation: horizontal flip, the same over a clip
    "scale": (0.8, 1.5),  # augmentation: random scale, the same over a clip
    "jitter": 0.2,  # augmentation: brightness/contrast/saturation, the same over a clip
    "jitter_per_frame": False,  # augmentation: drawn for each frame instead
    "crop_height": 96,  # augmentation: crop after scaling (padded with ignore where too small)
    "crop_width": 128,
    "crop_max_ratio": 1.0,  # a crop with this share of one class is drawn again (usual: 0.75), 1 = never
    "crop_tries": 10,  # how often at most
}

_NET = {
    "encoder": OneOf("mobilenet_v2", "dvsnas_jax.nets.encoders:TABLE"),
    "width": 0.5,  # multiplier of the encoder's channels
    "expand_first": True,  # MobileNetV2: 1x1 expansion in the first block (torchvision: False)
    "stride_in_1x1": False,  # ResNet bottlenecks: stride in the first 1x1 (2015) instead of the 3x3 (v1.5)
    "output_stride": OneOf(32, (16, 32)),  # of the deepest map; 16: dilated (DeepLabv3+ as published)
    # pixels between neighbours, per axis, of the maps that cells see and work at; the logits that they move and correct
    # stay at stride 4. A cell at 8 costs a quarter
    "grid_stride": OneOf(4, (4, 8, 16)),
    "freeze_norm": False,  # training keeps the encoder's running statistics and normalises by them
    "decoder": OneOf("refinenet", "dvsnas_jax.nets.decoders:TABLE"),
    "decoder_channels": 64,  # 256 as published, for both
    "dropout": 0.0,  # light-weight RefineNet on ResNet: of the two deepest maps; 0.5 as published
    "auxiliary": False,  # a second classifier on stage3 for the training loss
    # To start from: a folder of `dvsnas weights import` (one called imagenet: ./imagenet), or imagenet: the encoder's
    # from an installed package (extra `pretrained`), which not every encoder has; empty = random.
    "weights": "",
    "dtype": OneOf("float32", "dvsnas_jax.nets.static_net:DTYPES"),  # compute
}

_PRETRAIN = {
    "steps": 600,
    "batch_size": 12,
    "learning_rate": 3e-3,
    "schedule": OneOf("cosine", "dvsnas_jax.train.optim:DECAYS"),  # of the rate; polynomial: power 0.9
    "warmup_steps": 30,
    "weight_decay": 1e-4,
    "clip_norm": 3.0,
    "encoder_rate": 1.0,  # the encoder's learning rate as a multiple; 0.1 is usual for imported weights
    "label_smoothing": 0.0,  # share of the target spread over all classes
    # median = median frequency balancing, log = 1 / ln(1.10 + share of the pixels), or a number a class: 1,0.5,...;
    # empty = none
    "class_weights": "",
    "hardest": 1.0,  # share of the pixels that count, those of the largest losses (OHEM)
    "auxiliary_weight": 0.4,  # of the loss of net.auxiliary
    "teacher": "",  # run folder of a larger static network to learn from as well; empty = none
    "distillation": 0.3,  # weight of the divergence from the teacher
    "temperature": 1.0,  # of both in that divergence
    "polyak": 0.98,  # decay of the averaged weights, 0 = off
    "eval_every": 150,  # steps between validations on held-out training clips; the best is kept
    "checkpoint_every": 150,
}

_SPACE = {
    "inputs": (
        "prev_state",
        "prev_decoder",
        "prev_logits",
        "decoder",
        "logits",
        "stage1",
        "stage2",
        "image_diff",
    ),  # fmt: skip
    # refine: every frame passes the static network; propagate: only key frames do
    "mode": OneOf("refine", "dvsnas_jax.space.cell_frame:MODES"),
    # propagate: the deepest encoder stage that every frame passes
    "cut": OneOf("stage2", "dvsnas_jax.space.cell_frame:STAGES"),
    # of the cell. heads: the logits start from the baseline of the mode and are moved, mixed and corrected; none: that
    # baseline alone; classifier: made of the cell's output alone, as in the first versions
    "end": OneOf("heads", "dvsnas_jax.space.cell_end:ENDS"),
    "num_layers": 4,
    "operations": (),  # empty = all of the vocabulary
    "aggregations": (),  # empty = all of the vocabulary
    "channels": 24,
    "max_offset": 4.0,  # warp, deform_conv_3x3: largest displacement, in grid cells
    "attention_window": 3,  # local_attention: side of its window, odd, 3 to 9 grid cells
    "attention_heads": 1,  # local_attention: must divide channels
    "correlation_window": 7,  # correlation: side of the window that is searched for matches, odd, 3 to 9 grid cells
}

_FEATURES = {
    # static networks that are each trained without one part (contiguous blocks) of the meta-training clips and make the
    # features of that part, which cells are searched and trained on: as those of clips that the network never saw, as
    # all are later. Each costs as much as the static network itself. 0 or 1 = off: it makes all features
    "folds": 0,
}

_SCHEDULE = {
    "kind": OneOf("fixed", "dvsnas_jax.space.schedule:TABLE"),  # of key frames, mode propagate
    "interval": 5,  # fixed: every so many frames; else the longest distance of two key frames
    "threshold": 0.1,  # adaptive, regions: predicted share of labels that differ from the static network's
    "grid": (2, 2),  # regions: rows and columns that are decided by themselves
    # adaptive, regions: of so large a share of the frames that it looks at something may be due, on the meta-validation
    # clips; where the threshold makes it more, the trained head is made to predict less. Nearly all due takes longer
    # than the static network on every frame. 1 = the threshold alone decides
    "most_due": 0.7,
    # adaptive, regions. quick: decided by a quarter of the places; one region by itself, from the maps that it was
    # decided by, of more the whole frame. full: by all places, every region by itself, from the frame
    "effort": OneOf("quick", "dvsnas_jax.space.schedule:EFFORTS"),
}

_CONTROLLER = {
    "hidden": 100,
    "lstm_layers": 2,
    "init_scale": 0.1,  # weights uniform in +-init_scale
    "learning_rate": 1e-4,
    "clip_norm": 2.0,
    "ppo_clip": 0.1,
    "buffer": 100,  # rollouts per update
    "minibatch": 1,  # rollouts per gradient step of an update
    "epochs": 1,
    # Coefficient of the entropy bonus; 0 as in the sibling code: drawing explores by itself, and a bonus has to
    # fit the size of the rewards (raise it where the entropy falls to nothing early in a search).
    "entropy": 0.0,
    "baseline_decay": 0.95,
    # To variance 1 over the rows of an update (ppo: and mean 0). False: the baseline centres already, Adam
    # takes out a constant scale, and few rows would be scaled by noise. True pays with ten rows or more: steps
    # then do not shrink while the rewards of a search come closer together.
    "normalize_advantage": False,
    "masked_operations": (),  # names of operations that the policy must not choose
    "population": 20,  # evolution: members; the first so many draws are uniform (published: 100 of 20,000)
    "tournament": 5,  # evolution: the best of so many members is the parent (published: a quarter as well)
    # gumbel: the relaxed draws start spread over all tokens, for gradients of little noise, and end close to a
    # genotype, which is what is derived; the temperature falls exponentially over the search.
    "temperature_start": 1.0,
    "temperature_end": 0.1,
    # gumbel: a draw computes one genotype, and only its gradient is relaxed: nearer to what is derived, but on
    # made-up features it learns far slower, as the weights of one branch alone are trained in a step.
    "straight_through": False,
    "logits_rate": 0.1,  # gumbel: learning rate of the logits (Adam); some tens of steps have to decide
    "predictor_draws": 10,  # predictor: uniform draws before it proposes; fewer say nothing of its scales
    "predictor_pool": 400,  # predictor: uniform draws that a proposal is chosen from, and half as many children
    "predictor_memory": 1000,  # predictor: newest rewards that it is fitted to; its time is cubic in them
}

_SEARCH = {
    "strategy": OneOf("ppo", "dvsnas_jax.controller.strategies:TABLE"),
    # share: candidates share trained weights; scratch: each is trained from the same start
    "mode": OneOf("share", "dvsnas_jax.search.scratch:MODES"),
    # What is scored before anything is drawn: zoo (the hand-designed cells that the space can express), zoo:NAME or
    # the path of a genotype; with the strategies predictor, evolution and random.
    "first": (),
    "steps": 50,  # iterations: sample, train shared weights, score, update the policy
    "genotypes_per_step": 4,  # N, scored per iteration
    "shared_steps": 8,  # optimizer steps on the shared weights per iteration
    "shared_genotypes": 1,  # genotypes whose gradients are averaged in one optimizer step
    "relaxed_steps": 0,  # gumbel: optimizer steps per iteration; 0 = as many as cost what shared_steps cost
    "relaxed_limit": 200.0,  # gumbel: millions of values that the maps of all branches of a step may have
    "scratch_steps": 30,  # scratch: optimizer steps of a candidate
    "scratch_parts": 2,  # scratch: after each but the last, those below the mean so far stop; 1 = none
    "scratch_polyak": 0.9,  # scratch: decay of the averaged weights that are scored, 0 = off; for short runs
    # scratch: candidates that are trained at the same time; 0 = one a core on a single CPU device, else one.
    "scratch_workers": 0,
    # auto: a cell equal to an earlier one takes its reward from the log in mode scratch, where training it
    # again gives the same; not in mode share, where the weights have moved on.
    "reuse": OneOf("auto", "dvsnas_jax.search.scratch:REUSES"),
    # Iterations before the strategy learns; 0, as warmup_steps already makes the first rewards mean something.
    "controller_warmup": 0,
    "warmup_steps": 100,  # optimizer steps on uniformly drawn genotypes before the first iteration
    "batch_size": 8,
    "batch_parts": 1,  # parts of a batch, each normalised by itself: as many devices can share one genotype
    "store": OneOf("auto", "dvsnas_jax.train.feature_store:KINDS"),  # where features are kept
    "learning_rate": 3e-3,
    "weight_decay": 1e-5,
    "clip_norm": 3.0,
    "label_stride": 4,  # pixels between the labels of the training loss, per axis
    "cache_clips": 0,  # augmented clips whose features are kept; 0 = every clip once, as it is
    "meta_val_fraction": 0.1,
    # blocks: contiguous ones of the training sequences, what shares frames with them is left out; random: any clips
    "meta_val": OneOf("blocks", "dvsnas_jax.data.loading.held_out:KINDS"),
    "reward_clips": 32,  # meta-validation clips behind one reward, spread over the blocks
    # the random line: uniformly drawn genotypes, scored with shared weights that took as many steps as those of the
    # search, on uniformly drawn genotypes alone (scratch: each trained alone); 0 = none, which saves those steps
    "num_random": 40,
    # plain: the accuracy (geometric mean of mIoU, fwIoU and class accuracy); gain: the geometric mean of the share of
    # the training-free baseline's error that is taken away, and of true changes followed without flicker, which needs
    # labels on consecutive frames
    "reward": OneOf("plain", "dvsnas_jax.train.clip_scores:RULES"),
    "stability": 0.0,  # exponent of the stability factor (1 - flicker), needing labels on consecutive frames; 0 = off
    "cost": 0.0,  # exponent of the cost factor, below 1 for a cell of more MACs than cost_target; 0 = off
    "cost_target": 5.0,  # millions of multiply-adds a frame: of the cell; propagate: and of the stages it reads
    "checkpoint_every": 10,
}

_DERIVE = {
    "num_rewarded": 6,  # most rewarded genotypes re-scored on the whole meta-validation split
    # What the log is sorted by: reward, a single noisy one, or posterior, the mean that the predictor expects
    # after all rewards. It knows no drift: in mode share early rewards are of weights trained less.
    "rank": OneOf("reward", "dvsnas_jax.search.derive:RANKS"),
    "num_probable": 2,  # most probable of the final policy's samples, likewise
    # best of those by rewards that are taken anew (other batches; scratch: other weights, too), retrained from scratch
    # as static graphs; fewer than three leave the choice to noisy rewards
    "num_retrain": 3,
    # off: as they were found; dead: what changes no output is removed before a cell is retrained; noise: of the winner
    # also, afterwards, what is worth nothing within its noise on the meta-validation clips
    "simplify": OneOf("dead", "dvsnas_jax.search.simplify:LEVELS"),
}

_WHY = {
    "worth": True,  # the command search says what each part of its winner is worth, on the meta-validation clips
    "num_random": 0,  # distinct uniformly drawn cells that it then trains and evaluates as the winner; 0 = none
    "hand_designed": (),  # and hand-designed ones, zoo:NAME; zoo = all of the mode; empty = none
    "num_seeds": 1,  # trainings of each of those
}

_TRAIN = {
    "steps": 600,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "schedule": OneOf("cosine", "dvsnas_jax.train.optim:DECAYS"),
    "warmup_steps": 20,
    "weight_decay": 1e-4,
    "clip_norm": 3.0,
    "polyak": 0.98,
    "label_stride": 2,  # pixels between the labels of the loss, per axis
    "norm_batches": 16,  # batches that estimate the running statistics of the final weights
    # The next six keys are of every training of cells: of candidates during a search, too.
    # pretrain: class weights, hardest pixels and label smoothing as section pretrain has them; plain: none of them
    "loss": OneOf("pretrain", ("pretrain", "plain")),
    # whose pixels count. auto: propagate: those of the frames between key frames; refine: all of a true history, of
    # stills the target's alone; target: of the last frame; all: of every frame alike
    "frames": OneOf("auto", ("auto", "target", "all")),
    "labels": True,  # False: labels are not looked at, the teacher alone says what is right
    "teacher_weight": 0.0,  # of the divergence from the teacher's output on the same frame; 0 = off
    # network: the static network itself; augmented: the same on mirror images and larger images, averaged over time,
    # which takes 6.5 times its work once; else a run folder: its static network, or where it holds a trained cell, that
    # cell on its network, frame by frame of each clip
    "teacher": "network",
    "teacher_frames": OneOf("unlabelled", ("unlabelled", "all")),  # where it counts: frames without labels | all
    "temperature": 1.0,  # of both in that divergence
    # steps between validations on the meta-validation clips; the best is kept, the untrained cell included. 0 = off:
    # the last is kept
    "eval_every": 100,
    # what the best has most of: mIoU, times the stability factor of search.stability | the reward, but for its price
    "keep_by": OneOf("miou", ("miou", "reward")),
    "checkpoint_every": 200,
    # features.folds: steps of a short fit of a retrained cell at the end, on features that are all made by the static
    # network; 0 = off
    "final_steps": 0,
    "final_rate": 0.1,  # its learning rate, as a multiple of train.learning_rate
    # steps, after all that, in which the winner and the static network are trained together through time on augmented
    # clips as they come, as many frames at a time as pretrain.batch_size; the best on meta-validation is kept, and the
    # cell then has a static network of its own. 0 = off. Of the commands train and search
    "joint": 0,
    "joint_rate": 0.1,  # learning rate of cell and decoder, as a multiple of train.learning_rate
    "joint_encoder_rate": 0.1,  # that of the encoder, as a multiple of that; 0 = it stays as it is
    "joint_static": 1.0,  # weight of the loss of the static network's own logits beside the cell's; 0 = none
    # the static network by itself is trained on for as many steps, too, in the same way: a line of the evaluation
    "joint_control": False,
}

_ALL = {
    "seed": 0,
    # quick: half the compile time on a CPU, slower programs; for short runs
    "compile_effort": OneOf("full", "dvsnas_jax.core.compilation:EFFORTS"),
    "data": _DATA,
    "net": _NET,
    "pretrain": _PRETRAIN,
    "space": _SPACE,
    "features": _FEATURES,
    "schedule": _SCHEDULE,
    "controller": _CONTROLLER,
    "search": _SEARCH,
    "derive": _DERIVE,
    "why": _WHY,
    "train": _TRAIN,
    "evaluate": {
        "split": OneOf("val", "dvsnas_jax.data.datasets.frames:SPLITS"),
        # file: logits interpolated to the size of the label files, which are read as they are; as published scores
        "size": OneOf("frame", ("frame", "file")),
        "vc_frames": (8, 16),
        "follow_frames": 2,  # a true change of a label counts as followed up to so many frames later
        "latency_frames": 30,
    },
    "ablate": {"steps": 12, "warmup_steps": 40},  # of each search of leave-one-out
    "report": {"strip_frames": 5},
}


def make() -> ml_collections.ConfigDict:
    """Every key there is, with its default. A config file changes some of them."""
    return ml_collections.ConfigDict(_defaults(_ALL))


def _defaults(section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _defaults(value) if isinstance(value, dict) else value.default if isinstance(value, OneOf) else value
        for key, value in section.items()
    }


def choices(section: Mapping[str, Any] = _ALL, prefix: str = "") -> dict[str, OneOf]:
    """The dotted keys that take only some values."""
    found: dict[str, OneOf] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= choices(value, f"{prefix}{key}.")
        elif isinstance(value, OneOf):
            found[f"{prefix}{key}"] = value
    return found
