"""Tasks: for each its data, and the metric it is judged by."""
