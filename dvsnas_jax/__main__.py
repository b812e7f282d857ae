"""`python -m dvsnas_jax` is the command `dvsnas`."""

import sys

from dvsnas_jax import cli

if __name__ == "__main__":
    sys.exit(cli.main())
