"""For people who look, measure and teach: figures, benchmarks, synthetic checkpoints."""
