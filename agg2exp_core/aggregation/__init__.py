"""Voxel attributions summed over regions."""
