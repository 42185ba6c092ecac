"""What every stage needs of the machine: errors, files, devices, checkpoints."""
