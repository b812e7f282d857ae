"""Static (per-frame) segmentation networks and their backend-tuned layers."""
