"""The simulator: the real agents in a simulated world that does its worst (docs/simulator.md)."""
