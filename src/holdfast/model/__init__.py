"""The words of the domain: values only, no I/O, no clock, no randomness."""
