"""Fine-tunes a small Llama model to answer in a label prompt format of `sidecar.prompts`."""
