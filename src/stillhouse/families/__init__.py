"""The architectures Stillhouse supports: where their parts are, and what differs between them."""
