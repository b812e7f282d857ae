"""Settings of all tests: compiled programs are kept between runs, silent broadcasting of ranks raises.

Ordinary tests run small programs once or twice: XLA makes them without LLVM's optimizations and fusion emitters, which
takes a third of the time. Slow ones, which also measure, run what users run.
"""

import gc
import os
import pathlib

import pytest

_QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",  # the emitters that XLA had before them: 60 % of the time
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).resolve().parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_LONGEST_FIRST = (
    "pipeline", "ablate", "streaming", "gumbel", "table", "static_net", "prepare", "parity", "joint", "shared_layers",
    "space", "strategies", "rendezvous", "builders", "distributed", "keeping", "worth", "compare", "search",
    "earlier_stages", "propagate", "readme", "operations", "bench_search", "report", "folds", "evidence", "zoo",
    "torch_weights", "mesh", "data", "paper_configs", "doctor", "ppo", "stream", "cell_end", "cli", "canonical",
    "layers", "scratch", "bench_accelerator", "launch",
)  # fmt: skip
"""Of the files with the most work; the others, which follow, fill what two processes leave."""


_OF_THE_SAME_RUNS = (
    "segment", "export", "export_programs", "load", "kept_programs", "static_alone", "evaluate", "run_folder",
)  # fmt: skip
"""Files that share the run folders of `trained.evaluated`: one process of several has all of them."""


def pytest_collection_modifyitems(items) -> None:
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(_LONGEST_FIRST)}
    ranks.update({f"test_{name}.py": -1 for name in _OF_THE_SAME_RUNS})
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile`: a file in one process, and all of `_OF_THE_SAME_RUNS` in one."""
    from xdist import scheduler

    class Scheduling(scheduler.LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = super()._split_scope(nodeid)
            return "runs" if pathlib.Path(path).stem.removeprefix("test_") in _OF_THE_SAME_RUNS else path

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Modules and traces live as long as the process: looking for garbage among them takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def pytest_configure(config) -> None:
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] = " ".join([*os.environ.get("XLA_FLAGS", "").split(), *_QUICK])
