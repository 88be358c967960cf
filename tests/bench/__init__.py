"""How measurements are taken and shown; their results are not judged."""
