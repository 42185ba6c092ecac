"""How fast the three hot paths run beside what the machine could do: `python -m benchmarks`."""
