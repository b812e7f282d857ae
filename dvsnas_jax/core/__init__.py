"""Types, configuration, device mesh and run folder: what every other layer stands on."""
