"""Rows of `test_advice`: strategies, weights and data sets."""

import command_line
import looked_at
import numpy as np
from advice import (
    CONV1,
    LARGE,
    Row,
    by_variable,
    delete,
    file,
    gumbel,
    prepare,
    prepare_words,
    read_prepared,
    replay_words,
    small_table,
    torch_file,
    trees_folder,
    weights_of,
    with_weights,
    words_of,
)
from looked_at import load
from messages import ROOT

from dvsnas_jax.core.files import workdir
from dvsnas_jax.data.loading import store
from dvsnas_jax.data.prepared import reading
from dvsnas_jax.data.street import synthetic
from dvsnas_jax.nets.weights import weights_folder
from dvsnas_jax.studies import table, table_maker

STRATEGIES = [
    Row(
        "gradients with candidates trained alone",
        gumbel(search__mode="scratch"),
        ("set search.mode to 'share'",),
        gumbel(search__mode="share"),
    ),
    Row(
        "gradients of too large a step",
        gumbel(**LARGE),
        ("shorten space.operations, lower space.num_layers, space.channels or search.batch_size, or raise the limit",),
        lambda tmp: [
            gumbel(**change)(tmp)
            for change in (
                {**LARGE, "search__batch_size": "2"},
                {**LARGE, "space__channels": "1", "space__num_layers": "1", "space__operations": "none,skip"},
                {**LARGE, "search__relaxed_limit": "1e9"},
            )
        ],
    ),
    Row(
        "neither table nor folder",
        words_of("compare-strategies", command_line.SMOKE),
        ("--workdir: is needed, or --table to replay",),
        words_of(*replay_words("--table")),
    ),
    Row(
        "two tables",
        words_of(*replay_words("--table", "--make-table")),
        ("--make-table: makes a table, --table reads one; leave out one of them",),
        words_of(*replay_words("--table")),
    ),
    Row(
        "made-up rewards and a table",
        words_of(*replay_words("--table", "--made-up")),
        ("--made-up: ", "leave out --table and --make-table"),
        words_of("compare-strategies", "--made-up", "--strategies=random", "--seeds=1", "--budget=2"),
    ),
    Row(
        "no such table",
        words_of(*replay_words("--table=TMP/none.json")),
        ("give --table alone for the table of the package, or make one with --make-table",),
        words_of(*replay_words("--table")),
    ),
    Row(
        "damaged table",
        lambda tmp: table.load(small_table(tmp, rows=[])),
        ("is damaged", "make it again with --make-table"),
        lambda tmp: table.load(small_table(tmp)),
    ),
    Row(
        "gradients in a replay",
        words_of("compare-strategies", "--table", "--strategies=random,gumbel", "--seeds=1", "--budget=2"),
        ("leave gumbel out, or compare it in real searches, without --table and --made-up",),
        lambda tmp: [
            words_of(*replay_words("--table"))(tmp),
            words_of("compare-strategies", "--strategies=random,gumbel", command_line.SMOKE, "--workdir=TMP/w")(tmp),
        ],
    ),
    Row(
        "report where a file is",
        lambda tmp: [*replay_words("--table"), f"--output={file(tmp, 'f', 'x')}"],
        ("choose another --output",),
        words_of(*replay_words("--table"), "--output=TMP/other"),
    ),
    Row(
        "table of a large space",
        lambda tmp: table_maker.run(load(), workdir.Workdir(tmp / "w"), num_seeds=1, command=""),
        ("shorten space.inputs, space.operations, space.aggregations or space.num_layers, as configs/table.py does",),
        lambda tmp: [
            "compare-strategies", "--make-table", f"--config={ROOT / 'configs' / 'table.py'}", f"--workdir={tmp / 'w'}"
        ],
    ),
]  # fmt: skip

WEIGHTS = [
    Row(
        "no folder of weights",
        lambda tmp: weights_folder.load(tmp, {}),
        ("make such a folder with `dvsnas weights import`, or leave net.weights empty",),
        lambda tmp: ["weights", "import", weights_of(tmp), "--net=resnet18", f"--output={tmp / 'weights'}"],
    ),
    Row(
        "weights of another network",
        lambda tmp: with_weights(tmp, **{"net.width": "0.25"}),
        ("set --config.net.width=0.125, or import other weights with `dvsnas weights import`",),
        lambda tmp: with_weights(tmp, **{"net.width": "0.125"}),
    ),
    Row(
        "some tensors",
        lambda tmp: ["weights", "import", torch_file(tmp, **CONV1), "--net=resnet18", f"--output={tmp / 'out'}"],
        ("give another --net, or add --partial to take what fits",),
        words_of("weights", "import", "TMP/some.safetensors", "--net=resnet18", "--output=TMP/out", "--partial"),
    ),
    Row(
        "no tensor",
        lambda tmp: [
            "weights", "import", torch_file(tmp, x=np.zeros(2, np.float32)), "--net=resnet18", "--partial",
            f"--output={tmp / 'out'}",
        ],
        ("see them with `dvsnas weights inspect`",),
        words_of("weights", "inspect", "TMP/some.safetensors"),
    ),
    Row(
        "folder of something else",
        lambda tmp: [
            "weights", "import", torch_file(tmp, **CONV1), "--net=resnet18",
            f"--output={file(tmp, 'full/notes.txt', 'x').parent}", "--partial",
        ],
        ("is no folder of weights and not empty; choose another --output",),
        words_of("weights", "import", "TMP/some.safetensors", "--net=resnet18", "--output=TMP/new", "--partial"),
    ),
    Row(
        "no file of tensors",
        lambda tmp: ["weights", "inspect", file(tmp, "t.pth", "hello")],
        ("give a .safetensors file or one of torch.save(model.state_dict(), FILE)",),
        lambda tmp: ["weights", "inspect", torch_file(tmp, **CONV1)],
    ),
]  # fmt: skip

DATA = [
    Row(
        "one video of a sheet",
        words_of("data", "preview", command_line.SMOKE, "--output=TMP/x.png", "--video=0"),
        ("add --animate, or end --output in .gif",),
        lambda tmp: [
            words_of("data", "preview", command_line.SMOKE, "--output=TMP/x.png", "--video=0", "--animate")(tmp),
            words_of("data", "preview", command_line.SMOKE, "--output=TMP/x.gif", "--video=0", "--frames=2")(tmp),
        ],
    ),
    Row(
        "picture in a file",
        lambda tmp: ["data", "preview", command_line.SMOKE, f"--output={trees_folder(tmp / 'd.png')}"],
        ("choose another --output",),
        words_of("data", "preview", command_line.SMOKE, "--output=TMP/e.png"),
    ),
    Row(
        "no folder",
        lambda tmp: store.source(load(data__name="camvid").data, "train"),
        ("set data.dir or DVSNAS_CAMVID",),
        lambda tmp: [store.source(looked_at.camvid(tmp).data, "train"), by_variable(tmp)],
    ),
    Row(
        "nothing prepared",
        lambda tmp: reading.open_media(str(tmp / "prepared"), "train"),
        ("run `dvsnas data prepare --output=", "with this --config first, or leave data.prepared empty"),
        lambda tmp: [prepare(tmp), read_prepared()(tmp), read_prepared(data__prepared="")(tmp)],
    ),
    Row(
        "prepared from another data set",
        lambda tmp: reading.of(load(data__name="folder", data__prepared=str(prepare(tmp))).data, "train"),
        ("set data.name to 'camvid', or leave data.prepared empty",),
        read_prepared(),
    ),
    Row(
        "two prepared data sets",
        lambda tmp: [
            [prepare(tmp, output=f"two/{name}") for name in "ab"],
            (tmp / "two/a/camvid_clips").rename(tmp / "two/one_clips"),
            (tmp / "two/b/camvid_clips").rename(tmp / "two/camvid_clips"),
            reading.locate(tmp / "two"),
        ],
        ("data.prepared: ", "give one of them: "),
        lambda tmp: reading.locate(tmp / "two" / "one_clips" / reading.VERSION),
    ),
    Row(
        "split that is not prepared",
        lambda tmp: [prepare(tmp, "--splits=val"), read_prepared()(tmp)],
        ("delete it and run `dvsnas data prepare` again with --splits=val,train",),
        lambda tmp: [delete(tmp / "prepared"), prepare(tmp, "--splits=val,train"), read_prepared()(tmp)],
    ),
    Row(
        "prepared otherwise",
        lambda tmp: prepare(tmp, "--splits=val") and prepare_words(tmp, "--splits=train"),
        ("choose another --output, or delete that folder",),
        lambda tmp: prepare_words(tmp, "--splits=train", output="other"),
    ),
    Row(
        "size of synthetic clips",
        words_of("data", "prepare", command_line.SMOKE, "--output=TMP/p", "--height=8", "--width=8"),
        ("set data.height and data.width",),
        words_of(
            "data", "prepare", command_line.SMOKE, "--output=TMP/p", "--config.data.height=32",
            "--config.data.width=32", "--config.data.num_train_clips=1", "--config.data.num_val_clips=1",
        ),
    ),
    Row(
        "one side of a size",
        lambda tmp: prepare_words(tmp, "--height=8"),
        ("give both, above 0, or neither",),
        lambda tmp: prepare_words(tmp, "--height=8", "--width=8"),
    ),
    Row(
        "split without labels",
        lambda tmp: prepare_words(tmp, "--splits=test"),
        ("no frames",),
        lambda tmp: prepare_words(tmp, "--splits=val"),
    ),
    Row(
        "sizes of a clip",
        lambda tmp: synthetic.Street(0, "train", 0, 8).clip(0, 1),
        ("correct data.seed, data.height or data.width",),
        lambda tmp: synthetic.Street(0, "train", 8, 8).clip(0, 1),
    ),
    Row(
        "longer clips than videos",
        lambda tmp: store.index(load(data__val_frames="4").data, "val", 9),
        ("raise data.val_frames",),
        lambda tmp: store.index(load(data__val_frames="9").data, "val", 9),
    ),
]  # fmt: skip
