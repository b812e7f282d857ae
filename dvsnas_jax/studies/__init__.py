"""Experiments over many cells or searches: comparison, ablation, strategies on equal budgets."""
