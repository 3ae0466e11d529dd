"""What a stage is: a value that its folder exports, and what the pipeline gives it."""
