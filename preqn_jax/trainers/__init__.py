"""Trainers: environments on the host, or on the device beside the learners."""
