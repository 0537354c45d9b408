"""Everything outside the process, injected: warehouse, lake, MLflow, feature store, BentoML, alerts."""
