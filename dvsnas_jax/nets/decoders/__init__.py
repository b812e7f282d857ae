"""Decoders of the static network: a file each, which states its record; see `decoder.Decoder`."""

from __future__ import annotations

from dvsnas_jax.core import records
from dvsnas_jax.nets.decoders import decoder

TABLE: dict[str, decoder.Decoder] = records.find(__name__)
"""What `config.net.decoder` may be."""
