"""Settings of all tests: compiled programs are kept between runs, silent broadcasting of ranks raises.

Ordinary tests run small programs once or twice: XLA makes them without LLVM's optimizations and fusion emitters, which
takes a third of the time. Slow ones, which also measure, run what users run.
"""

import os
import pathlib

_QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",  # the emitters that XLA had before them: 60 % of the time
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).resolve().parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_configure(config) -> None:
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] = " ".join([*os.environ.get("XLA_FLAGS", "").split(), *_QUICK])
