"""Neural architecture search of dynamic cells for video segmentation, in JAX."""

__version__ = "0.1.0"
