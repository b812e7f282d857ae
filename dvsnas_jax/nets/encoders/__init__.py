"""Encoders of the static network: a file each, which states its record; see `encoder.Encoder`."""

from __future__ import annotations

from dvsnas_jax.core import records
from dvsnas_jax.nets.encoders import encoder

TABLE: dict[str, encoder.Encoder] = records.find(__name__)
"""What `config.net.encoder` may be."""
