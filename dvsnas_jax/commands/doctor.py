"""The command that checks the machine: doctor."""

from __future__ import annotations

import argparse
import dataclasses

from dvsnas_jax.commands import common
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_text


def register(add: common.Add) -> None:
    """Adds the command."""
    doctor = add(
        "doctor",
        _doctor,
        "check devices, versions, memory, compile cache, datasets and one step; exit code 1 where something is broken",
        "--config=configs/smoke.py",
    )
    common.add_config(doctor, is_required=False)
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    common.add_compile_cache(doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    config = common.load_config(arguments) if arguments.config or arguments.overrides else None
    from dvsnas_jax.bench import doctor

    checks = doctor.run(config)
    is_fine = doctor.is_fine(checks)
    if arguments.json:
        found = {"is_fine": is_fine, "checks": [dataclasses.asdict(check) for check in checks]}
        print(json_text.dumps(found, indent=1))
    else:
        print(doctor.table(checks))
    return errors.EXIT_DONE if is_fine else errors.EXIT_FAULT
