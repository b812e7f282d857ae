"""A trained network over the frames of a video: the programs, their dispatch, and `segment`."""
