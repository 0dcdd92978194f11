"""Speed and memory as ratios against the plain algorithm, in the same run. Never part of the tests."""
