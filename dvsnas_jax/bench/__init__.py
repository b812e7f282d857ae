"""Speed of every part, and whether the machine can run them."""
