"""The training engine: state, loop, checkpoints. It knows no particular problem."""
