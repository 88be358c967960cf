"""Reading, checking and storing policies and model catalogs."""
