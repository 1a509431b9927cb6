"""Training one fold model: parts by name, the loop, full-size validation."""
