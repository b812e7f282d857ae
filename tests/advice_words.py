"""Rows of `test_advice`: genotypes, configurations and words of commands."""

import command_line
import looked_at
from advice import ONE_LAYER, Row, bench_words, embedded, few_cells, file, member_without_max, smoke, space_of, words_of
from looked_at import load
from messages import ROOT

from dvsnas_jax.bench import data_speed as data_bench
from dvsnas_jax.bench import search_speed
from dvsnas_jax.controller import strategies
from dvsnas_jax.controller.strategies import ppo
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import zoo

GENOTYPES = [
    Row("near zoo", words_of("show", "zoo:grpf"), ("did you mean 'zoo:grfp'",), words_of("show", "zoo:grfp")),
    Row("zoo left out", words_of("show", "grfp"), ("did you mean 'zoo:grfp'?",), words_of("show", "zoo:grfp")),
    Row(
        "folder for a genotype",
        lambda tmp: ["show", command_line.write_run(tmp / "run", load())],
        ("give a genotype file, for example", "run/best_genotype.json"),
        words_of("show", "TMP/run/best_genotype.json"),
    ),
    Row(
        "no genotype",
        lambda tmp: ["show", file(tmp, "g.json", "[]")],
        ("correct it, or give a file as `dvsnas search` writes it (best_genotype.json)",),
        lambda tmp: ["show", command_line.write_run(tmp / "run", load()) / "best_genotype.json"],
    ),
    Row(
        "version",
        lambda tmp: ["show", file(tmp, "g.json", {**ONE_LAYER, "version": 2})],
        ('version 2, "version" must be 1',),
        lambda tmp: ["show", file(tmp, "g.json", {**ONE_LAYER, "version": 1})],
    ),
    Row(
        "all drawn at once",
        words_of("show", "zoo", "--output=TMP/x.svg"),
        ("--output: ", "choose one, for example zoo:static"),
        words_of("show", "zoo:static", "--output=TMP/x.svg"),
    ),
    Row(
        "fewer layers than the space",
        lambda tmp: genotype_lib.from_dict(ONE_LAYER, space_of(3)),
        ("set --config.space.num_layers=1",),
        lambda tmp: genotype_lib.from_dict(ONE_LAYER, space_of(load(space__num_layers="1").space.num_layers)),
    ),
    Row(
        "more layers than the space",
        lambda tmp: zoo.genotype(zoo.get("grfp"), genotype_lib.Space(genotype_lib.REFINE_INPUTS, 1)),
        (f"set --config.space.num_layers={len(zoo.get('grfp').genotype['layers'])}",),
        lambda tmp: zoo.genotype(
            zoo.get("grfp"), genotype_lib.Space(genotype_lib.REFINE_INPUTS, len(zoo.get("grfp").genotype["layers"]))
        ),
    ),
    Row(
        "nothing to fill layers with",
        embedded(len(member_without_max().genotype["layers"]) + 1),
        ("lacks", f"set --config.space.num_layers={len(member_without_max().genotype['layers'])}"),
        embedded(len(member_without_max().genotype["layers"])),
    ),
    Row(
        "another mode",
        words_of(
            "train", command_line.SMOKE, "--workdir=TMP/w", "--genotype=zoo:accel", "--config.schedule.kind=regions",
        ),
        ("zoo:accel: ", "add --config.space.mode=propagate --config.schedule.kind=fixed"),
        words_of(
            "train", command_line.SMOKE, "--workdir=TMP/w", "--genotype=zoo:accel", "--config.schedule.kind=regions",
            "--config.space.mode=propagate", "--config.schedule.kind=fixed", "--config.space.inputs=prev_state,stage1",
            "--config.data.num_frames=6",
        ),
    ),
]  # fmt: skip

CONFIGS = [
    Row(
        "near key",
        words_of("doctor", "--config.search.stepz=3"),
        ("did you mean 'search.steps'?",),
        lambda tmp: load(search__steps="3"),
    ),
    Row(
        "key without its section",
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.width=3"),
        ("did you mean 'data.width' or 'net.width'?",),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.net.width=3"),
    ),
    Row(
        "section",
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.search=3"),
        ("is a section; set one of its keys, for example 'search.batch_parts'",),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.search.batch_parts=1"),
    ),
    Row(
        "no get_config",
        lambda tmp: config_lib.load(str(file(tmp, "c.py", "x = 1\n"))),
        ("get_config()", "write it as configs/smoke.py does"),
        lambda tmp: config_lib.load(str(file(tmp, "c.py", (ROOT / "configs" / "smoke.py").read_text()))),
    ),
    Row(
        "nothing returned",
        lambda tmp: config_lib.load(str(file(tmp, "c.py", "def get_config():\n  config = {}\n"))),
        ("end it with `return config`",),
        lambda tmp: config_lib.load(str(file(tmp, "c.py", "def get_config():\n  config = {}\n  return config\n"))),
    ),
    Row(
        "run folder for a config",
        lambda tmp: ["search", f"--config={command_line.write_run(tmp / 'r', smoke())}", f"--workdir={tmp / 'w'}"],
        ("is a run folder; give its config, ", "config.json"),
        words_of("search", "--config=TMP/r/config.json", "--workdir=TMP/w"),
    ),
    Row(
        "no file",
        words_of("search", "--config=TMP/none.py", "--workdir=TMP/w"),
        ("--config: no such file", "give a Python file with get_config()"),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w"),
    ),
    Row(
        "override without a value",
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.seed"),
        ("needs a value, --config.seed=VALUE",),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.seed=3"),
    ),
    Row(
        "no config is taken",
        words_of("show", "zoo:grfp", "--config.seed=3"),
        ("--config.seed: the command show takes no config; leave it out",),
        words_of("show", "zoo:grfp"),
    ),
    Row(
        "parts of a batch",
        lambda tmp: load(search__batch_size="8", search__batch_parts="3"),
        ("'search.batch_parts': must divide search.batch_size (8)",),
        lambda tmp: load(search__batch_size="8", search__batch_parts="4"),
    ),
    Row(
        "parts of scratch steps",
        lambda tmp: load(search__scratch_steps="8", search__scratch_parts="3"),
        ("'search.scratch_parts': must divide search.scratch_steps (8)",),
        lambda tmp: load(search__scratch_steps="8", search__scratch_parts="4"),
    ),
    Row(
        "more retrained than derived",
        lambda tmp: load(derive__num_rewarded="1", derive__num_probable="1", derive__num_retrain="3"),
        ("'derive.num_retrain': must be at most derive.num_rewarded + derive.num_probable",),
        lambda tmp: load(derive__num_rewarded="1", derive__num_probable="2", derive__num_retrain="3"),
    ),
    Row(
        "minibatch",
        lambda tmp: ppo._check(load(controller__minibatch="9", controller__buffer="8").controller),
        ("controller.minibatch: must be at most controller.buffer (8), got 9",),
        lambda tmp: ppo._check(load(controller__minibatch="8", controller__buffer="8").controller),
    ),
    Row(
        "all operations masked",
        lambda tmp: strategies.operation_mask(few_cells(), ("none", "skip")),
        ("controller.masked_operations: ", "leave one out of it"),
        lambda tmp: strategies.operation_mask(few_cells(), ("none",)),
    ),
    Row(
        "network larger than the machine",
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.net.width=100000"),
        ("net: a network of 1.12e+17 variables", "lower net.width or net.decoder_channels"),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.net.width=0.25"),
    ),
    Row(
        "dropout",
        lambda tmp: static_net.make(load(net__dropout="0.5").net, 11),
        ("set net.dropout to 0",),
        lambda tmp: static_net.make(load(net__dropout="0").net, 11),
    ),
]

WORDS = [
    Row(
        "near option",
        words_of("show", "zoo:grfp", "--outptu=TMP/x.svg"),
        ("did you mean --output?", "(see dvsnas show --help)"),
        words_of("show", "zoo:grfp", "--output=TMP/x.svg"),
    ),
    Row(
        "unknown option",
        words_of("show", "zoo:grfp", "--quick"),
        ("leave them out (see dvsnas show --help)",),
        words_of("show", "zoo:grfp"),
    ),
    Row(
        "value of a variable that is not set",
        words_of("search", command_line.SMOKE, "--workdir="),
        ("--workdir: an empty value; give one",),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w"),
    ),
    Row(
        "part without a config",
        bench_words("controller", command_line.SMOKE),
        ("bench controller: takes no config; leave --config out",),
        bench_words("controller"),
    ),
    Row(
        "option of another part",
        bench_words("controller", "--candidates=0"),
        ("--candidates: only `dvsnas bench search` takes it; leave it out",),
        bench_words("search", "--candidates=5"),
    ),
    Row(
        "figures that cannot be written",
        bench_words("controller", "--json=TMP/none/x.json"),
        ("--json: cannot write", "give the name of a file in a folder that is there"),
        bench_words("controller", "--json=TMP/x.json"),
    ),
    Row(
        "bench of a search without shared weights",
        lambda tmp: search_speed._prepared(load(search__mode="scratch")),
        ("set search.mode to 'share'",),
        lambda tmp: search_speed._prepared(load(search__mode="share")),
    ),
    Row(
        "bench of a search by gradients",
        lambda tmp: search_speed._prepared(load(search__strategy="gumbel")),
        ("set search.strategy to another name",),
        lambda tmp: search_speed._prepared(load(search__strategy="ppo")),
    ),
    Row(
        "bench of the other loader",
        lambda tmp: data_bench.run(load(data__loader="numpy").data),
        ("set data.loader to 'auto'",),
        lambda tmp: data_bench.run(looked_at.camvid(tmp, data__loader="auto").data),
    ),
    Row(
        "bench of prepared data",
        lambda tmp: next(data_bench._decode(load(data__prepared="prepared").data, 1, 2)),
        ("leave data.prepared empty",),
        lambda tmp: next(data_bench._decode(load(data__prepared="").data, 1, 2)),
    ),
]
