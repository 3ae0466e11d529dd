"""The race's stage: candidates of one size -> the shape of the student."""
