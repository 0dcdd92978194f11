"""Speed and memory as ratios against the plain algorithm, in the same run; tests share only its browser."""
