"""A trained run folder for use elsewhere: opened, loaded, exported."""
