"""Prompt formats, token budgets, labels and answer parsing; pure."""
