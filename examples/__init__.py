"""PreQN's critic step in the agents of other libraries; each file replaces only the critic step of the host library."""
