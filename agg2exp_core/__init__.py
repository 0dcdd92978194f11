"""Attributions of 3D segmentation models, aggregated over organs and cohorts."""
