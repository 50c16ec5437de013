"""Comparison with peers: `make bench`, or one row with `make bench WORK=name`. No tests."""
