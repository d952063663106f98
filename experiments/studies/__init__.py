"""Parts of the programs that study the paper, a folder for each program."""
