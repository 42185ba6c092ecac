"""What every stage needs: errors, files, locks, signals, devices, checkpoints."""
