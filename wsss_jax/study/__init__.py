"""Ablations, rivals and the synthetic world: for experiments and benchmarks alone."""
