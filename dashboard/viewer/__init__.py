"""Linked slices of a scan with its saliency."""
