"""How good and how stable predictions are: metrics, whole-video evaluation, submissions, pictures of scores."""
