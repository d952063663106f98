"""The command line: flags, configurations and the programs that train, evaluate and sweep."""
