"""Expert statistics: what each MoE layer did with the calibration tokens, as sums."""
