"""`python -m bench`: speed and memory, measured here and now."""

from __future__ import annotations

from bench import aggregation, attribution, cluster, crowd, dashboard, engine, jobs, store, viewer


def main() -> None:
    for part in (aggregation, attribution, engine, jobs, cluster, store, dashboard, crowd, viewer):
        for name, value in part.main():
            print(f"{name:<75} {value}", flush=True)


if __name__ == "__main__":
    main()
