"""Training with and without synthetic tumors: arms, settings, seeds."""
