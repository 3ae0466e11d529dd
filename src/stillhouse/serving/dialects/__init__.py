"""One module per dialect: routes, request schemas, errors and events of one kind of client."""
