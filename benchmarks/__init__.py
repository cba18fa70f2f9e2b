"""What the method costs on this machine: `python -m benchmarks.decode`."""
