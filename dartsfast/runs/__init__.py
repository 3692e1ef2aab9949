"""What every run is made of: options, epochs, checkpoints, signals, the folder that it leaves."""
