"""The network: bundles, pre-processing, windows, prediction, training."""
