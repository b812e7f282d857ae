"""From an index of frames to clips on the host: decoding, augmentation, sharding, prefetching."""
