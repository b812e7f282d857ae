"""From measured phases to the cost of a whole search: hours, device-hours, and time per step on more devices.

Arithmetic alone. What is measured and what is assumed is written beside the figures: an estimate is no measurement.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Links:
    """How fast devices are assumed to talk to each other."""

    devices_per_host: int = 8  # devices that share the fast links
    inside: float = 300e9  # bytes per second and device and direction, inside a host
    between: float = 40e9  # the same between hosts
    latency: float = 10e-6  # seconds of one hop of a ring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What a measurement on some devices gave; a device's load stays the same on more of them."""

    devices: int = 1  # how many were measured
    # seconds of an optimizer step on the shared weights, one value for every group of random genotypes
    train: tuple[float, ...]
    evaluate: tuple[float, ...]  # seconds of scoring the candidates of an iteration, likewise
    sample: float = 0.0  # seconds of drawing the genotypes of an iteration
    update: float = 0.0  # seconds of the policy's learning from the candidates of an iteration
    input: float = 0.0  # seconds of preparing the arguments of one optimizer step on the host
    candidates: int  # candidates of an iteration, on all measured devices together
    shared_steps: int  # optimizer steps of an iteration
    warmup_steps: int  # optimizer steps before the first iteration
    # uniformly drawn candidates that are scored after the last iteration, with weights that take as many steps
    num_random: int
    train_bytes: int  # of the collectives of an optimizer step, per device
    evaluate_bytes: int  # of those of a scoring, per device
    compile: float = 0.0  # seconds, all programs


def all_reduce_seconds(num_bytes: float, num_devices: int, links: Links) -> float:
    """Time of an all-reduce: rings inside each host, and one between the hosts over a share of the data.

    A ring of n devices moves 2 (n - 1) / n of the data over each link, in 2 (n - 1) hops. With several hosts, each
    device reduces its share of the data with its counterparts.
    """
    inside = min(num_devices, links.devices_per_host)
    hosts = math.ceil(num_devices / links.devices_per_host)
    seconds = _ring(num_bytes, inside, links.inside, links.latency)
    return seconds + _ring(num_bytes / inside, hosts, links.between, links.latency)


def _ring(num_bytes: float, members: int, bandwidth: float, latency: float) -> float:
    return 2 * (members - 1) * (num_bytes / members / bandwidth + latency)


def expected_max(samples: Sequence[float], count: int) -> float:
    """Expected largest of `count` independent draws from the samples: a step lasts as long as its slowest device."""
    ordered, size = sorted(samples), len(samples)
    shares = [((i + 1) / size) ** count - (i / size) ** count for i in range(size)]
    return sum(value * share for value, share in zip(ordered, shares, strict=True))


def scaling(
    measured: Measured, links: Links, *, num_candidates: int, devices: Sequence[int] = DEVICES
) -> list[dict[str, float]]:
    """Weak scaling: n times the devices draw, train and score n times the genotypes in an iteration.

    Args:
      measured: on `measured.devices` devices.
      links: what is assumed of the links.
      num_candidates: of the whole search.
      devices: numbers of devices; those that are no multiple of the measured one are left out.

    Returns:
      A row for each number: `compute_s` (the slowest device's part of an optimizer step), `collective_s`, `step_s`,
      `efficiency` (compute on the measured devices over the step), `iteration_s`, `candidates_per_hour`, `iterations`,
      `hours` and `device_hours` of the whole search.
    """
    return [_row(measured, links, num_candidates, n) for n in devices if n % measured.devices == 0]


def _row(measured: Measured, links: Links, num_candidates: int, num_devices: int) -> dict[str, float]:
    times = num_devices // measured.devices

    def extra(num_bytes: int) -> float:  # what the measured devices need is in the measured time
        measured_part = all_reduce_seconds(num_bytes, measured.devices, links)
        return all_reduce_seconds(num_bytes, num_devices, links) - measured_part

    compute, collective = expected_max(measured.train, times), extra(measured.train_bytes)
    step = measured.input + compute + collective
    scoring = expected_max(measured.evaluate, times) + extra(measured.evaluate_bytes)
    # The policy learns from every candidate on every device alike: this part does not become shorter.
    policy = measured.sample + measured.update * times
    iteration = policy + measured.shared_steps * step + scoring
    candidates = measured.candidates * times
    iterations = math.ceil(num_candidates / candidates)
    last = math.ceil(measured.num_random / candidates) * scoring
    last += iterations * measured.shared_steps * step * (measured.num_random > 0)
    seconds = measured.compile + measured.warmup_steps * step + iterations * iteration + last
    return {
        "devices": num_devices,
        "compute_s": compute,
        "collective_s": collective,
        "step_s": step,
        "efficiency": (measured.input + expected_max(measured.train, 1)) / step,
        "iteration_s": iteration,
        "candidates_per_hour": 3600 * candidates / iteration,
        "iterations": iterations,
        "hours": seconds / 3600,
        "device_hours": seconds / 3600 * num_devices,
    }


def assumptions(measured: Measured, links: Links, num_candidates: int, *, is_assumed: bool = False) -> list[str]:
    """What the rows of `scaling` rest on, a sentence each; `is_assumed`: the seconds were not measured either."""
    ending = f", compilation ({measured.compile:.0f} s) once"
    source = (
        f"measured: {measured.devices} device(s), random genotypes; a trained policy's cells may be dearer or cheaper"
    )
    slowest = "a step lasts as long as its slowest device (expected largest of n draws of the measured times)"
    policy = "the policy's update is not spread: it grows with the candidates of an iteration"
    if is_assumed:
        ending, slowest = "", "every genotype costs the mean of random ones: no device waits for a slower one"
        source = "the seconds of one device are counted work over an assumed speed"
        policy = "not included either: compilation, drawing the genotypes and the policy's update"
    return [
        f"{num_candidates} candidates, {measured.warmup_steps} warm-up steps before them, {measured.num_random} "
        f"uniformly drawn candidates scored after them, with weights that are trained as long{ending}",
        "not included: the static network's training, its features, the retraining of the best cells, the evaluation",
        source,
        f"n times the devices take n times the genotypes in each of the {measured.shared_steps} optimizer steps of an "
        "iteration and score n times the candidates: fewer iterations, fewer optimizer steps in all",
        slowest,
        f"assumed: {links.inside / 1e9:g} GB/s a device inside a host of {links.devices_per_host}, "
        f"{links.between / 1e9:g} GB/s a device between hosts, {links.latency * 1e6:g} us a hop; "
        "collectives do not overlap with computation",
        f"counted: {measured.train_bytes / 1e6:.2f} MB of collectives an optimizer step, "
        f"{measured.evaluate_bytes / 1e3:.1f} kB a scoring",
        policy,
    ]


COLUMNS = (
    # key, heading, factor, digits
    ("devices", "devices", 1, 0),
    ("compute_s", "compute ms", 1e3, 1),
    ("collective_s", "collectives ms", 1e3, 2),
    ("step_s", "step ms", 1e3, 1),
    ("efficiency", "efficiency %", 100, 0),
    ("candidates_per_hour", "candidates/h", 1, 0),
    ("hours", "hours", 1, 3),
    ("device_hours", "device-hours", 1, 2),
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `scaling` as aligned text."""
    lines = [[heading for _, heading, _, _ in COLUMNS]]
    lines += [[f"{row[key] * factor:.{digits}f}" for key, _, factor, digits in COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
