"""Voxel attributions of the stitched prediction."""
