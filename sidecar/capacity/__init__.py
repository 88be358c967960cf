"""Plans how many GPUs a fleet of sidecars needs. Everything here is computed, nothing measured."""
