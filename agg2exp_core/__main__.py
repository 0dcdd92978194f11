from agg2exp_core.cli import main

main()
