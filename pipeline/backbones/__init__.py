"""CNNs without their classifier heads, and their weights."""
