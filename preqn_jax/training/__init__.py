"""Training: configuration, trainers, replay, evaluation, checkpoints and reports."""
