"""A trained network over the frames of a video: its programs, their one dispatch, exported folders, video files."""
