"""One reconciliation per asset: compare what should be with what is, and do exactly the difference."""
