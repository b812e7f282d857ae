"""Videos as frames and back: decoding, colours, overlays, files."""
