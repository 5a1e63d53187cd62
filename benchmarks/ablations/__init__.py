"""The paper's ablations at equal budgets, judged by the same evaluation; ours beside the paper's (docs/ablations.md)."""
