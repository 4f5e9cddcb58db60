"""Learning problems: models and losses as two pure functions."""
