"""Parts of the programs that compare agents over many runs."""
