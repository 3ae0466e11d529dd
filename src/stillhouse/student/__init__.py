"""The student's stage: teacher + layer map -> initial student."""
