"""Evaluation: classifiers and features of encoders, probes, metrics, reconstruction scores, and their reports."""
