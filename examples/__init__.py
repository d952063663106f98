"""PreQN's critic step inside loops and libraries that are not ours; each file replaces only the host's own."""
