"""Training of one given network: the static network, its features, a cell on top of them."""
