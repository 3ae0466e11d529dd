"""What is measured of every model, one file for each kind of metric."""
