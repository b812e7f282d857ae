"""Training, evaluation, drawing and reporting of one given network."""
