"""External validation: a registered model judged on another cohort, whose patients had no part in it."""
