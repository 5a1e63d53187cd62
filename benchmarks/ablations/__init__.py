"""The paper's ablations at equal budgets, judged alike; ours beside the paper's (docs/ablations.md)."""
