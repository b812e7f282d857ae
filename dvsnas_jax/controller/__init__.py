"""The policy that writes genotypes, and the strategies that train it."""
