"""The architectures Stillhouse supports, one file each."""
