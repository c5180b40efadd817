"""Where a trial runs: Tune runs, Optuna decides."""
