"""Programs that XLA compiles."""

import collections
import contextlib

import jax


@contextlib.contextmanager
def count():
    """Counts the programs that are compiled, by the name of their function."""
    counts: collections.Counter[str] = collections.Counter()

    def listen(event: str, duration: float, **kwargs) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            counts[kwargs["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
