"""What runs in an interpreter of its own. The scripts import nothing of the harness: a peer's environment lacks it."""
