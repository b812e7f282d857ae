"""Rows of `test_advice`: folders of one's own, run folders and videos."""

import command_line
import looked_at
import numpy as np
import pytest
from advice import (
    Row,
    animation_file,
    claim,
    damage,
    fitting,
    in_use,
    is_over,
    meet_at_a_port_in_use,
    other_config,
    restore_first,
    saved,
    segment_words,
    smoke,
    teacher,
    unbound,
    video_file,
    words_of,
)
from looked_at import load

from dvsnas_jax.core.files import checkpoint, workdir
from dvsnas_jax.core.processes import distributed, rendezvous
from dvsnas_jax.evaluate import evaluation
from dvsnas_jax.train import claims, require_labels, winners

FOLDERS = [
    Row(
        "no checkpoint",
        lambda tmp: checkpoint.Checkpointer(tmp / "c").restore({"x": np.zeros(3, np.float32)}),
        ("there are none; restore that folder, or train in another --workdir",),
        lambda tmp: saved(tmp, "c").restore({"x": np.zeros(3, np.float32)}),
    ),
    Row("damaged checkpoint", damage, ("delete that folder and start the run again",), restore_first),
    Row(
        "checkpoint of another network",
        lambda tmp: saved(tmp).restore({"y": np.zeros(3, np.float32)}),
        ("checkpoint of another tree", "use another --workdir"),
        lambda tmp: saved(tmp, "other").restore({"x": np.zeros(3, np.float32)}),
    ),
    Row(
        "another config",
        other_config,
        ("use another --workdir or the same config",),
        lambda tmp: [claim(tmp, "other", seed="2"), claim(tmp, "run", seed="1")],
    ),
]


OWN_DATA = [
    Row(
        "class twice",
        looked_at.coded(classes="a,a"),
        ("all its ids in data.folder.ids, as 1+2",),
        looked_at.coded(classes="a", ids="0+1"),
    ),
    Row(
        "classes without names",
        looked_at.coded(classes=""),
        ("data.folder.classes: ", "as sky,road,car; camvid, or cityscapes, stands for all of its classes"),
        lambda tmp: [looked_at.coded(classes=names)(tmp) for names in ("sky,road,car", "camvid")],
    ),
    Row("one id of two classes", looked_at.coded(ids="1,1"), ("correct data.folder.ids",), looked_at.coded(ids="1,2")),
    Row(
        "colours without classes",
        looked_at.coded(classes="", colors="#000000"),
        ("data.folder.colors: ", "name them in data.folder.classes"),
        looked_at.coded(classes="a", colors="#000000"),
    ),
    Row(
        "splits of masks alone",
        looked_at.splitting(below="masks/train", masks="masks/{split}/{sequence}/{number}.png"),
        ("write * for it in the masks, and set data.folder.splits",),
        looked_at.splitting(masks="masks/*/{sequence}/{number}.png", splits="0.5,0.5"),
    ),
    Row(
        "one video for two splits",
        looked_at.splitting(*(f"v/{number:04d}.png" for number in range(4)), splits="0.5,0.5"),
        ("set data.folder.split_by=blocks",),
        looked_at.splitting(splits="0.5,0.5", split_by="blocks"),
    ),
    Row(
        "gap of frames",
        looked_at.clipping(),
        ("gaps that exist: 2", "change data.num_frames, data.frame_gap or data.frame_gap_tolerance", "data.history"),
        lambda tmp: [
            looked_at.clipping(**{key: value})(tmp)
            for key, value in (
                ("data__num_frames", "1"), ("data__frame_gap", "2"), ("data__frame_gap_tolerance", "1"),
                ("data__history", "stills"),
            )
        ],
    ),
    Row(
        "gap of videos",
        looked_at.watching(),
        ("gaps that exist: 2", "change data.eval_gap"),
        looked_at.watching(data__eval_gap="2"),
    ),
    Row(
        "one clip",
        looked_at.labelled("v0/0000.png", "v0/0001.png", "v1/0000.png", "v1/0001.png"),
        ("data: the train split has one clip", "add labelled frames, or lower data.num_frames or data.frame_gap"),
        looked_at.labelled(data__num_frames="1"),
    ),
    Row(
        "no label where rewards are measured",
        looked_at.half_labelled(),
        ("change search.meta_val_fraction, search.reward_clips or seed",),
        lambda tmp: [looked_at.half_labelled(**change)(tmp) for change in ({"search__reward_clips": "2"},)],
    ),
    Row(
        "nothing to score on",
        looked_at.without_val_masks(),
        ("split val: none of its frames has a label image", "name another split in evaluate.split"),
        looked_at.without_val_masks(evaluate__split="test"),
    ),
    Row(
        "masks of 0 and 255",
        looked_at.labelled(values=(0, 255)),
        ("set data.folder.ids, as 0,255, or name classes that are not there in data.folder.absent",),
        lambda tmp: [looked_at.labelled(ids="0,255")(tmp), looked_at.labelled(absent="b")(tmp)],
    ),
    Row(
        "unknown id of a folder",
        looked_at.labelled(values=(0, 1, 7)),
        ("make a class of it by data.folder.ids, or leave it out: --config.data.folder.ignore=255,7",),
        lambda tmp: [looked_at.labelled(ignore="255,7")(tmp), looked_at.labelled(classes="a,b,c", ids="0,1,7")(tmp)],
    ),
    Row(
        "unknown id of CamVid",
        lambda tmp: [looked_at.repaint(tmp), require_labels.check(looked_at.camvid(tmp))],
        ("leave it out: --config.data.ignore=77",),
        lambda tmp: require_labels.check(looked_at.camvid(tmp, data__ignore="77")),
    ),
    Row(
        "classes of another data set",
        lambda tmp: evaluation._check_classes(("a", "b"), looked_at.classes(tmp, "b,a"), tmp),
        ("the same classes in the same order (data.folder.classes)",),
        lambda tmp: evaluation._check_classes(("a", "b"), looked_at.classes(tmp, "a,b"), tmp),
    ),
    Row(
        "other data than the run's",
        lambda tmp: claims.check(looked_at.other_camvid(tmp), workdir.Workdir(tmp / "run")),
        ("use another --workdir, or score other data by `dvsnas evaluate --other-data`",),
        lambda tmp: [
            claims.check(looked_at.other_camvid(tmp), workdir.Workdir(tmp / "run"), ignore=("data",)),
            claims.check(looked_at.other_camvid(tmp), workdir.Workdir(tmp / "new")),
        ],
    ),
]  # fmt: skip

RUNS = [
    Row(
        "cell of `train` in a search",
        lambda tmp: ["search", f"--workdir={command_line.write_run(tmp / 'run', smoke())}"],
        ("holds the cell of genotype ", "search in another --workdir"),
        words_of("search", "--config=TMP/run/config.json", "--workdir=TMP/other"),
    ),
    Row(
        "another cell",
        lambda tmp: ["train", f"--workdir={command_line.write_run(tmp / 'run', smoke())}", "--genotype=zoo:static"],
        ("holds the trained cell of genotype ", "in another --workdir"),
        words_of("train", "--config=TMP/run/config.json", "--workdir=TMP/other", "--genotype=zoo:static"),
    ),
    Row(
        "weights that are not there",
        lambda tmp: winners.load(load(), unbound(tmp)),
        ("put the file back, or train the genotype in a folder of its own with `dvsnas train --genotype`",),
        words_of("train", command_line.SMOKE, "--workdir=TMP/own", "--genotype=TMP/run/best_genotype.json"),
    ),
    Row(
        "cell of another mode in an ablation",
        lambda tmp: ["ablate", f"--workdir={command_line.write_run(tmp / 'run', load())}", "--genotype=zoo:dff"],
        ("--genotype: zoo:dff does not fit the run", "mode refine, ", "for example zoo:static, zoo:netwarp, zoo:grfp"),
        lambda tmp: fitting(tmp, "zoo:grfp"),
    ),
    Row(
        "cell of more layers in an ablation",
        lambda tmp: [
            "ablate", f"--workdir={command_line.write_run(tmp / 'run', load(space__num_layers='2'))}",
            "--genotype=zoo:grfp",
        ],
        ("does not fit the run in ", "2 layers", "for example zoo:static, zoo:netwarp"),
        lambda tmp: fitting(tmp, "zoo:netwarp"),
    ),
    Row(
        "in use",
        lambda tmp: [in_use(tmp / "run"), claim(tmp, "run")],
        ("is in use", "wait until that ends or stop it, or use another --workdir"),
        lambda tmp: [claim(tmp, "other"), is_over(), claim(tmp, "run")],
    ),
    Row(
        "seeds beyond the last",
        words_of("compare", command_line.SMOKE, "--workdir=TMP/w", "--genotypes=zoo:grfp", "--config.seed=4294967295"),
        ("--seeds: ", "lower seed or --seeds"),
        words_of(
            "compare", command_line.SMOKE, "--workdir=TMP/w", "--genotypes=zoo:grfp", "--config.seed=4294967295",
            "--seeds=1",
        ),
    ),
    Row(
        "teacher without a run",
        lambda tmp: teacher(str(tmp / "none")),
        ("pretrain.teacher: ", "give a run folder, or leave pretrain.teacher empty"),
        lambda tmp: [teacher(""), teacher(str(command_line.write_run(tmp / "run", smoke())))],
    ),
    Row(
        "teacher without weights",
        lambda tmp: teacher(str(command_line.write_run(tmp / "run", smoke())), is_trained=False),
        ("run `dvsnas train --workdir=", "first, or leave pretrain.teacher empty"),
        words_of("train", "--workdir=TMP/run"),
    ),
    Row(
        "teacher of other classes",
        lambda tmp: teacher(str(command_line.write_run(tmp / "run", smoke())), num_classes=5),
        ("give a run on the same classes, or leave pretrain.teacher empty",),
        lambda tmp: teacher(str(tmp / "run")),
    ),
    Row(
        "port in use",
        lambda tmp: meet_at_a_port_in_use(),
        ("or choose another port, the same for every process (with SLURM or a JobSet: by DVSNAS_PORT)",),
        lambda tmp: distributed._port({"DVSNAS_PORT": "1235"}, 1234) == 1235 or pytest.fail("the port stays"),
    ),
    Row(
        "process that does not come",
        lambda tmp: rendezvous.meet("127.0.0.1:1", 1, 2, seconds=0.1),
        ("let them wait longer by --start-timeout",),
        lambda tmp: distributed.start_seconds({}, 600.0) == 600 or pytest.fail("the time stays"),
    ),
]  # fmt: skip

SEGMENTS = [
    Row(
        "nothing to write",
        lambda tmp: segment_words(tmp),
        ("give --output, --masks or --summary",),
        lambda tmp: [
            segment_words(tmp, f"--{flag}={tmp / name}")
            for flag, name in (("output", "x.mp4"), ("masks", "m"), ("summary", "s.json"))
        ],
    ),
    Row(
        "rate of a video",
        lambda tmp: segment_words(tmp, f"--masks={tmp / 'm'}", "--fps=5", source=video_file(tmp)),
        ("leave --fps out",),
        lambda tmp: segment_words(tmp, f"--masks={tmp / 'm'}", source=video_file(tmp)),
    ),
    Row(
        "rate of an animation",
        lambda tmp: segment_words(tmp, f"--masks={tmp / 'm'}", "--fps=5", source=animation_file(tmp)),
        ("leave --fps out",),
        lambda tmp: segment_words(tmp, f"--masks={tmp / 'm'}", source=animation_file(tmp)),
    ),
]
