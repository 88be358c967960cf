"""Measures a router over cases: reading them, asking, metrics, baselines, calibration, reports."""
