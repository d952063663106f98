"""The numerical core: arrays in, arrays out; nothing here jits, logs, or knows of an environment."""
