"""The teacher's stage: a teacher trained here, where none is given."""
